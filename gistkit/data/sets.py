"""Data sets by name. A data set is a function from a DataConfig to examples by split.

To add one, write such a function and add it to `DATASETS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gistkit.data import tasks
from gistkit.data.alpaca_plus import SPLITS, AlpacaPlus
from gistkit.data.examples import read_examples
from gistkit.errors import OptionError
from gistkit.prompts import Example


def setting(default: Any, help: str, published: str = "") -> Any:
    """A dataclass field that documents itself: `gistkit train --help`, docs/configuration.md.

    `default` may be a function that makes it; `published` is how the published system differed.
    """
    metadata = {"help": help, "published": published}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TaskConfig:
    """`data.tasks`: which generated tasks (`gistkit.data.tasks`), and how many.

    The validation splits are drawn as the last stage is.
    """

    stages: Sequence[tuple[str, int, int]] = setting(
        (("mixed", 0, 20_000),),
        "generated tasks, for data.dataset_name=tasks: curriculum of (family, difficulty, rows); "
        "difficulty 0 draws one for each row",
        "no such key",
    )
    validation_rows: int = setting(400, "rows of each validation split", "no such key")
    seed: int = setting(0, "of the generated rows", "no such key")

    def __post_init__(self) -> None:
        stages = self.stages
        if not isinstance(stages, Sequence) or not stages or not all(map(_is_stage, stages)):
            raise OptionError(
                f"data.tasks.stages must be a list of [family, difficulty, rows], not {stages!r}"
            )
        for name in ("validation_rows", "seed"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < (name == "validation_rows"):
                raise OptionError(f"data.tasks.{name} must be a whole number, not {value!r}")


def _is_stage(stage: object) -> bool:
    match stage:
        case [str(), int(difficulty), int(rows)]:  # a list or a tuple
            return difficulty >= 0 and rows >= 1
    return False


@dataclass(frozen=True)
class DataConfig:
    """`data`: which data to read, and where it is."""

    dataset_name: str = setting(
        "alpaca-plus",
        "`alpaca-plus`, `json` or `tasks` (generated); docs/data.md",
        "alpaca-plus only",
    )
    data_dir: str = setting("data/alpaca_plus", "folder of the files", "fixed")
    train_file: str | None = setting(
        None, "training rows, instead of the folder's file", "no effect"
    )
    validation_file: str | Mapping[str, str] | None = setting(
        None, "validation rows: a file (the split `validation`), or files by split", "no effect"
    )
    splits: tuple[str, ...] | None = setting(
        None, "read these splits only; null: all of the data set", "no such key"
    )
    tasks: TaskConfig = field(default_factory=TaskConfig)
    max_train_samples: int | None = setting(None, "number of training rows at most")
    max_eval_samples: int | None = setting(
        None, "rows of each validation split at most, chosen after shuffling with seed 42"
    )
    pretokenize: bool = setting(
        True,
        "tokenize training rows once, into files under model.cache_dir; false: batch by batch",
        "at start, in memory",
    )
    overwrite_cache: bool = setting(False, "tokenize them again even if the files exist")

    def __post_init__(self) -> None:
        for name in ("max_train_samples", "max_eval_samples"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise OptionError(f"data.{name} must be at least 1, not {value}")

    def files(self) -> dict[str, str]:
        train = {} if self.train_file is None else {"train": self.train_file}
        if self.validation_file is None:
            return train
        if isinstance(self.validation_file, str):
            return {**train, "validation": self.validation_file}
        return {**train, **self.validation_file}


Reader = Callable[[DataConfig], dict[str, list[Example]]]


def read_data(config: DataConfig) -> dict[str, list[Example]]:
    """The examples of each split, in the order of `config.splits` or of the data set.

    Raises OptionError for an unknown data set or split, DataError for a missing or damaged file.
    """
    if config.dataset_name not in DATASETS:
        names = ", ".join(DATASETS)
        raise OptionError(f"there is no data set '{config.dataset_name}'; choose among {names}")
    return DATASETS[config.dataset_name](config)


def read_splits(config: DataConfig) -> tuple[list[Example], dict[str, list[Example]]]:
    """Training rows and validation splits, as training reads them: at most `max_*_samples` each.

    Validation is shuffled with seed 42 first, as published, so that a subset is a fair sample and
    the rows of an output file are in the published order.
    """
    splits = read_data(config)
    train = splits.pop("train", [])[: config.max_train_samples]
    return train, {
        name: shuffled(rows, 42)[: config.max_eval_samples] for name, rows in splits.items()
    }


def shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    """The order that `datasets.Dataset.shuffle(seed)` gives."""
    import numpy  # slow to import; only this function needs it

    order = numpy.random.default_rng(seed).permutation(len(examples))
    return [examples[i] for i in order]


def _alpaca_plus(config: DataConfig) -> dict[str, list[Example]]:
    data = AlpacaPlus(Path(config.data_dir), config.files())
    splits = SPLITS if config.splits is None else config.splits
    for split in splits:
        data.path(split)  # report a missing last split before reading the first
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
    chosen = config.tasks
    last_family, last_difficulty, _ = chosen.stages[-1]
    validation = [(last_family, last_difficulty, chosen.validation_rows)]
    return {
        split: [
            example
            for number, (family, difficulty, rows) in enumerate(
                chosen.stages if split == "train" else validation
            )
            for example in tasks.generate(
                family,
                split,
                n=rows,
                seed=chosen.seed * 1000 + number,
                difficulty=difficulty or None,
            )
        ]
        for split in (tasks.SPLITS if config.splits is None else config.splits)
    }


DATASETS: Mapping[str, Reader] = {"alpaca-plus": _alpaca_plus, "json": _files, "tasks": _tasks}
