"""Alpaca+ by its published names and by bare ones; data sets by name."""

import logging
from pathlib import Path

import pytest

from gistkit.data.alpaca_plus import SPLITS, AlpacaPlus
from gistkit.data.examples import write_examples
from gistkit.data.sets import DataConfig, read_data
from gistkit.errors import DataError, OptionError
from gistkit.prompts import Example


def write(path: Path, word: str) -> list[Example]:
    examples = [Example(word, output=word, source="test"), Example(word, word, word)]
    write_examples(path, examples)
    return examples


def test_published_names_are_found(tmp_path: Path) -> None:
    written = {split: write(tmp_path / f"alpaca_plus_{split}.json", split) for split in SPLITS}
    assert read_data(DataConfig(data_dir=str(tmp_path))) == written


def test_bare_names_are_found_after_published_ones(tmp_path: Path) -> None:
    data = AlpacaPlus(tmp_path)
    bare = write(tmp_path / "train.jsonl.gz", "bare")
    assert data.read("train") == bare
    published = write(tmp_path / "alpaca_plus_train.jsonl", "published")
    assert data.read("train") == published
    assert data.read("train", limit=1) == published[:1]


def test_files_named_outright_come_first(tmp_path: Path) -> None:
    write(tmp_path / "train.json", "folder")
    train = write(tmp_path / "mine.jsonl", "mine")
    human = write(tmp_path / "people.json", "people")
    config = DataConfig(
        data_dir=str(tmp_path),
        train_file=str(tmp_path / "mine.jsonl"),
        validation_file={"validation_human": str(tmp_path / "people.json")},
        splits=("train", "validation_human"),
    )
    assert read_data(config) == {"train": train, "validation_human": human}


def test_a_split_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    write(tmp_path / "train.json", "train")
    with pytest.raises(DataError, match="alpaca_plus_validation_seen or validation_seen"):
        read_data(DataConfig(data_dir=str(tmp_path)))
    with pytest.raises(OptionError, match="no split 'test'"):
        read_data(DataConfig(data_dir=str(tmp_path), splits=("test",)))
    with pytest.raises(OptionError, match="no split 'validation'"):
        read_data(DataConfig(data_dir=str(tmp_path), validation_file="a.json"))


def test_a_train_file_without_self_instruct_is_read_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    part = write(tmp_path / "train_alpaca_part.jsonl.gz", "part")
    with caplog.at_level(logging.WARNING):
        assert AlpacaPlus(tmp_path).read("train") == part
    assert "without Self-Instruct" in caplog.text


def test_any_files_can_be_a_data_set(tmp_path: Path) -> None:
    train = write(tmp_path / "a.json", "a")
    validation = write(tmp_path / "b.jsonl", "b")
    config = DataConfig("json", train_file=str(tmp_path / "a.json"))
    assert read_data(config) == {"train": train}
    config = DataConfig("json", validation_file=str(tmp_path / "b.jsonl"))
    assert read_data(config) == {"validation": validation}
    with pytest.raises(OptionError, match="no file is named for split 'train'"):
        read_data(DataConfig("json", validation_file="b.jsonl", splits=("train",)))
    with pytest.raises(OptionError, match="needs train_file or validation_file"):
        read_data(DataConfig("json"))
    with pytest.raises(OptionError, match="no data set 'c4'"):
        read_data(DataConfig("c4"))


def test_the_real_data(shared: Path) -> None:
    """Row counts, sources and rows with an input, as the data's own description has them."""
    splits = read_data(DataConfig(data_dir=str(shared / "data" / "alpaca_plus")))
    counts = {
        split: (len(rows), sum(row.input != "" for row in rows)) for split, rows in splits.items()
    }
    assert counts == {
        "train": (51002, 19679),
        "validation_seen": (1000, 1000),
        "validation_unseen": (1000, 1000),
        "validation_human": (252, 208),
    }
    assert {row.source for row in splits["train"] + splits["validation_unseen"]} == {"alpaca"}
    assert {row.source for row in splits["validation_human"]} == {"self_instruct"}
    trained = {row.instruction for row in splits["train"]}
    assert not trained & {row.instruction for row in splits["validation_unseen"]}
