"""What `gistkit evaluate` reads: the validation splits at a path, in the published order."""

from collections.abc import Sequence
from pathlib import Path

from gistkit.data import tasks
from gistkit.data.alpaca_plus import SPLITS, AlpacaPlus
from gistkit.data.examples import read_examples
from gistkit.data.sets import DataConfig, read_data, shuffled
from gistkit.errors import DataError, OptionError
from gistkit.prompts import Example

TASKS = "tasks"
PREFIX = "validation_"


def read_validation(
    path: str, splits: Sequence[str] = (), *, limit: int | None = None
) -> dict[str, list[Example]]:
    """Examples by split (`validation_unseen`, ...), shuffled with seed 42 as published, then cut.

    Args:
        path: a file of examples, a folder of Alpaca+ or laid out like it, or "tasks" (generated).
        splits: which of a folder's, with or without `validation_`; none: all there are. A file is
            one split, of this name or of its own.
        limit: at most this many examples of each.

    Raises:
        OptionError: there is no such split.
        DataError: there are no examples, or a file is damaged.
    """
    wanted = tuple(PREFIX + split.removeprefix(PREFIX) for split in splits)
    if path == TASKS:
        names = wanted or tuple(s for s in tasks.SPLITS if s.startswith(PREFIX))
        for name in names:
            if name not in tasks.SPLITS:
                raise OptionError(
                    f"the generated tasks have no split {name}; there are seen, unseen"
                )
        found = read_data(DataConfig(dataset_name=TASKS, splits=names))
    elif Path(path).is_dir():
        folder = AlpacaPlus(Path(path))
        found = {split: folder.read(split) for split in wanted or _there(folder)}
    elif len(wanted) > 1:
        raise OptionError(f"{path} is a file, which is one split; give one `split`, or a folder")
    else:
        name = wanted[0] if wanted else split_name(Path(path))
        found = {name: read_examples(path)}
    return {name: shuffled(rows, 42)[:limit] for name, rows in found.items()}


def split_name(path: Path) -> str:
    """`alpaca_plus_validation_human.json` and `human.jsonl` -> `validation_human`."""
    stem = path.name.split(".")[0].removeprefix("alpaca_plus_")
    return PREFIX + stem.removeprefix(PREFIX)


def _there(folder: AlpacaPlus) -> list[str]:
    """The validation splits that the folder holds."""
    found = []
    for split in SPLITS:
        if split.startswith(PREFIX):
            try:
                folder.path(split)
            except DataError:
                continue
            found.append(split)
    if not found:
        folder.path(PREFIX + "seen")  # its error names the files that were looked for
    return found
