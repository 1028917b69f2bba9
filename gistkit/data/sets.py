"""Data sets by name. A data set is a reader: a DataConfig in, examples by split out.

To add one, write such a function and give it a line in `DATASETS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gistkit.data import tasks
from gistkit.data.alpaca_plus import SPLITS, AlpacaPlus
from gistkit.data.examples import read_examples
from gistkit.errors import OptionError
from gistkit.prompts import Example


def _ok(stage: object) -> bool:
    match stage:
        case [str(), int(difficulty), int(rows)]:
            return difficulty >= 0 and rows >= 1
        case (str(), int(difficulty), int(rows)):
            return difficulty >= 0 and rows >= 1
    return False


@dataclass(frozen=True)
class TaskConfig:
    """Which generated tasks (`gistkit.data.tasks`), and how many.

    `stages` is a curriculum: (family, difficulty, rows) in the order of training; a difficulty of 0
    draws one for each row. The validation splits are drawn as the last stage is.
    """

    stages: Sequence[tuple[str, int, int]] = (("mixed", 0, 20_000),)
    validation_rows: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        if (
            not isinstance(self.stages, Sequence)
            or not self.stages
            or not all(map(_ok, self.stages))
        ):
            raise OptionError(
                "data.tasks.stages must be a list of [family, difficulty, rows], "
                f"not {self.stages!r}"
            )
        for name in ("validation_rows", "seed"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < (name == "validation_rows"):
                raise OptionError(f"data.tasks.{name} must be a whole number, not {value!r}")


@dataclass(frozen=True)
class DataConfig:
    """Which data to read, and where it is.

    `train_file` and `validation_file` name files outright; `validation_file` is one file (the split
    "validation") or one for each split. `splits` reads only these; None reads all there should be.
    With `pretokenize` the training rows are tokenized beforehand into files (see
    `gistkit.data.tokenized`), anew where `overwrite_cache` is set; without, batch by batch.
    """

    dataset_name: str = "alpaca-plus"
    data_dir: str = "data/alpaca_plus"
    train_file: str | None = None
    validation_file: str | Mapping[str, str] | None = None
    splits: tuple[str, ...] | None = None
    tasks: TaskConfig = field(default_factory=TaskConfig)
    pretokenize: bool = True
    overwrite_cache: bool = False

    def files(self) -> dict[str, str]:
        """The files that the configuration names, by split."""
        train = {} if self.train_file is None else {"train": self.train_file}
        if self.validation_file is None:
            return train
        if isinstance(self.validation_file, str):
            return {**train, "validation": self.validation_file}
        return {**train, **self.validation_file}


Reader = Callable[[DataConfig], dict[str, list[Example]]]


def read_data(config: DataConfig) -> dict[str, list[Example]]:
    """The examples of each split, in the order of `config.splits` or of the data set.

    Raises:
        OptionError: no such data set, or it has no such split.
        DataError: a split's file is missing or damaged; the message names it.
    """
    if config.dataset_name not in DATASETS:
        names = ", ".join(DATASETS)
        raise OptionError(f"there is no data set '{config.dataset_name}'; choose among {names}")
    return DATASETS[config.dataset_name](config)


def shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    """The order that `datasets.Dataset.shuffle(seed)` gives."""
    import numpy  # slow to import; only this function needs it

    order = numpy.random.default_rng(seed).permutation(len(examples))
    return [examples[i] for i in order]


def _alpaca_plus(config: DataConfig) -> dict[str, list[Example]]:
    data = AlpacaPlus(Path(config.data_dir), config.files())
    splits = SPLITS if config.splits is None else config.splits
    for split in splits:
        data.path(split)  # complain of the last split before reading the first
    return {split: data.read(split) for split in splits}


def _files(config: DataConfig) -> dict[str, list[Example]]:
    files = config.files()
    if not files:
        raise OptionError("the data set 'json' needs train_file or validation_file; give one")
    splits = tuple(files) if config.splits is None else config.splits
    for split in splits:
        if split not in files:
            raise OptionError(f"no file is named for split '{split}'; there are {', '.join(files)}")
    return {split: read_examples(files[split]) for split in splits}


def _tasks(config: DataConfig) -> dict[str, list[Example]]:
    asked = config.tasks
    wanted = tasks.SPLITS if config.splits is None else config.splits
    read: dict[str, list[Example]] = {}
    last_family, last_difficulty, _ = asked.stages[-1]
    validation = [(last_family, last_difficulty, asked.validation_rows)]
    for split in wanted:
        read[split] = [
            example
            for number, (family, difficulty, rows) in enumerate(
                asked.stages if split == "train" else validation
            )
            for example in tasks.generate(
                family,
                split,
                n=rows,
                seed=asked.seed * 1000 + number,
                difficulty=difficulty or None,
            )
        ]
    return read


DATASETS: Mapping[str, Reader] = {"alpaca-plus": _alpaca_plus, "json": _files, "tasks": _tasks}
