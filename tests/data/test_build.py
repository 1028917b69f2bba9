"""Alpaca+ from its sources: the published bytes from the real ones, the recipe on small ones."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from gistkit.data import build
from gistkit.data.build import (
    build_alpaca_plus,
    git_blob_hash,
    split_alpaca,
    split_self_instruct,
)
from gistkit.data.examples import read_examples
from gistkit.errors import DataError
from gistkit.prompts import Example


def test_real_sources_give_the_published_files(shared: Path, tmp_path: Path) -> None:
    data = shared / "data"
    report = build_alpaca_plus(data / "sources", tmp_path)

    for split in ("validation_unseen", "validation_human"):
        name = f"alpaca_plus_{split}.json"
        published = (data / "alpaca_plus" / f"{split}.json").read_bytes()
        assert (tmp_path / name).read_bytes() == published
        assert report["files"][name]["verified"] is True
        assert report["files"][name]["blob"] == git_blob_hash(published)
    part = "train_alpaca_part.jsonl.gz"
    assert read_examples(tmp_path / part) == read_examples(data / "alpaca_plus" / part)
    assert report["files"][part]["verified"] is None

    if build.SELF_INSTRUCT not in report["sources"]:
        assert len(report["files"]) == 3
        assert any("validation_seen is not built" in line for line in report["missing"])
        assert any("51,002 rows of the published 130,321" in line for line in report["missing"])


def test_the_hash_is_gits() -> None:
    assert git_blob_hash(b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert git_blob_hash(b"a") == hashlib.sha1(b"blob 1\0a").hexdigest()


def row(instruction: str, input: str = "", output: str = "o") -> dict[str, str]:
    return {"instruction": instruction, "input": input, "output": output}


ALPACA: list[dict[str, Any]] = [
    row("shared", "x"),  # in Self-Instruct's train: not unseen
    row("no input"),
    row("new", "x", ""),
    row("Calculate the total cost.", "1 + 1"),
    row("silent", "", ""),
]
HUMAN: list[dict[str, Any]] = [
    {
        "instruction": "h",
        "instances": [{"input": "1", "output": "a"}, {"input": "2", "output": "b"}],
    }
]
SELF_INSTRUCT: list[dict[str, Any]] = [
    row("shared", "a", "1"),
    row("alone", "a"),
    row("shared", "b", "2"),
    row("empty first", ""),
    row("shared", "b", "again"),
    row("empty first", "a"),
    row("shared", "a", "again"),
]


def write_sources(folder: Path, *, self_instruct: bool) -> Path:
    folder.mkdir(exist_ok=True)
    lines = {"user_oriented_instructions.jsonl": HUMAN}
    if self_instruct:
        lines["all_instances_82K.jsonl"] = SELF_INSTRUCT
    (folder / "alpaca_data.json").write_text(json.dumps(ALPACA))
    for name, rows in lines.items():
        (folder / name).write_text("".join(json.dumps(one) + "\n" for one in rows))
    return folder


def test_the_recipe_with_self_instruct(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "sources", self_instruct=True)
    report = build_alpaca_plus(sources, tmp_path / "out", verify=False)
    splits = {name: read_examples(file["path"]) for name, file in report["files"].items()}
    assert splits == {
        "alpaca_plus_validation_seen.json": [Example("shared", "a", "1", "self_instruct")],
        "alpaca_plus_validation_unseen.json": [
            Example("new", "x", "empty", "alpaca"),
            Example("Calculate the total cost.", "1 + 1", "o", "alpaca"),
        ],
        "alpaca_plus_validation_human.json": [
            Example("h", "1", "a", "self_instruct"),
            Example("h", "2", "b", "self_instruct"),
        ],
        "alpaca_plus_train.json": [
            Example("shared", "b", "2", "self_instruct"),
            Example("alone", "a", "o", "self_instruct"),
            Example("empty first", "", "o", "self_instruct"),
            Example("empty first", "a", "o", "self_instruct"),
            Example("shared", "x", "o", "alpaca"),
            Example("no input", "", "o", "alpaca"),
            Example("silent", "", "empty", "alpaca"),
        ],
    }
    assert not report["missing"]
    assert not any(source["verified"] for source in report["sources"].values())
    assert not any(file["verified"] for file in report["files"].values())


def test_without_self_instruct_the_known_overlap_decides(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "sources", self_instruct=False)
    report = build_alpaca_plus(sources, tmp_path / "out", verify=False)
    unseen = read_examples(tmp_path / "out" / "alpaca_plus_validation_unseen.json")
    train = read_examples(tmp_path / "out" / "train_alpaca_part.jsonl.gz")
    assert [example.instruction for example in unseen] == ["shared", "new"]
    assert [example.instruction for example in train] == [
        "no input",
        "Calculate the total cost.",
        "silent",
    ]
    assert len(report["missing"]) == 3


def test_each_validation_split_takes_its_first_1000(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "VALIDATION_ROWS", 2)
    rows = [Example(name, input, name) for name in "abc" for input in "xyz"]
    seen, train = split_self_instruct(rows)
    assert [(one.instruction, one.input) for one in seen] == [("a", "x"), ("b", "x")]
    assert len(train) == len(rows) - 2
    unseen, rest = split_alpaca([Example(name, "x", name) for name in "abcd"], {"b"})
    assert [one.instruction for one in unseen] == ["a", "c"]
    assert [one.instruction for one in rest] == ["b", "d"]


def test_an_instruction_cannot_be_unseen_and_trained_on() -> None:
    with pytest.raises(DataError, match="repeats the unseen instruction 'a'"):
        split_alpaca([Example("a", "x"), Example("a")], ())


def test_a_source_that_is_not_the_published_one_is_refused(tmp_path: Path) -> None:
    sources = write_sources(tmp_path / "sources", self_instruct=False)
    with pytest.raises(DataError) as caught:
        build_alpaca_plus(sources, tmp_path / "out")
    found = git_blob_hash((sources / "alpaca_data.json").read_bytes())
    assert found in str(caught.value)
    assert build.PUBLISHED["alpaca_data.json"] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["alpaca_data.json", "user_oriented_instructions.jsonl"])
def test_a_missing_source_is_named(tmp_path: Path, name: str) -> None:
    sources = write_sources(tmp_path / "sources", self_instruct=False)
    (sources / name).unlink()
    with pytest.raises(DataError, match=f"no {name}"):
        build_alpaca_plus(sources, tmp_path / "out", verify=False)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"instruction": "h"}', "line 1: field 'instances' is not an array"),
        ('{"instruction": "h", "instances": [1]}', "line 1: field 'instances' is not an array"),
        ('{"instances": [{"output": "a"}]}', "line 1: field 'instruction' is null"),
        ('{"instruction": "h", "instances": [{}]}', "line 1: field 'output' is missing"),
    ],
)
def test_a_damaged_source_leaves_nothing_behind(tmp_path: Path, line: str, message: str) -> None:
    sources = write_sources(tmp_path / "sources", self_instruct=False)
    (sources / "user_oriented_instructions.jsonl").write_text(line)
    with pytest.raises(DataError, match=message):
        build_alpaca_plus(sources, tmp_path / "out", verify=False)
    assert not (tmp_path / "out").exists()


def test_no_folder_of_sources_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        build_alpaca_plus(tmp_path / "sources", tmp_path / "out")
