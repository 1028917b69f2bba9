"""Alpaca+: the paper's data, Self-Instruct and Stanford Alpaca together (section 3.1, appendix).

    data/alpaca_plus/
      alpaca_plus_train.json               130,321 rows
      alpaca_plus_validation_seen.json       1,000   instructions of train, other inputs
      alpaca_plus_validation_unseen.json     1,000   instructions that are not in train
      alpaca_plus_validation_human.json        252   written by people for Self-Instruct

`gistkit.data.build` makes the folder. A split also goes by its bare name (`train.jsonl.gz`), and
any ending that `gistkit.data.examples` reads will do.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from gistkit.data.examples import read_examples
from gistkit.errors import DataError, OptionError
from gistkit.prompts import Example

SPLITS = ("train", "validation_seen", "validation_unseen", "validation_human")

PARTIAL_TRAIN = "train_alpaca_part"
"""The name of a train file without its Self-Instruct rows (61 % of them)."""

_ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".json.xz", ".jsonl.xz")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AlpacaPlus:
    """The splits in `folder`, but for those that `files` names by split."""

    folder: Path
    files: Mapping[str, str | PathLike[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for split in self.files:
            _check(split)

    def path(self, split: str) -> Path:
        """The file of a split, under any of its names (raises OptionError, DataError)."""
        _check(split)
        if split in self.files:
            return Path(self.files[split])
        stems = [f"alpaca_plus_{split}", split]
        if split == "train":
            stems.append(PARTIAL_TRAIN)
        for name in (stem + ending for stem in stems for ending in _ENDINGS):
            if (self.folder / name).is_file():
                return self.folder / name
        raise DataError(
            f"{self.folder}: no {' or '.join(stems)} (.json or .jsonl, alone or with .gz or .xz);"
            " name another folder, build Alpaca+ into it, or ask for other splits"
        )

    def read(self, split: str, *, limit: int | None = None) -> list[Example]:
        """A split's examples, or its first `limit`. Warns if train is only its Alpaca part.

        Raises OptionError and DataError, as `path` and `iter_examples` do.
        """
        path = self.path(split)
        if path.name.startswith(PARTIAL_TRAIN):
            _log.warning("%s: train without Self-Instruct; validation_seen is not seen", path)
        return read_examples(path, limit=limit)


def _check(split: str) -> None:
    if split not in SPLITS:
        raise OptionError(f"Alpaca+ has no split '{split}'; choose among {', '.join(SPLITS)}")
