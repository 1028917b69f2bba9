"""Rows tokenized into files: the same ids, found again, never another's."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gistkit.data.collate import EncodedRows
from gistkit.data.tokenized import tokenize_rows
from gistkit.errors import DataError, PromptError, SaveError
from gistkit.prompts import Example, InstructionTemplate, PromptEncoder
from gistkit.testing import tiny_gist_model

ROWS = [
    Example("Greet.", "Ann", "Hello, Ann."),
    Example("Say nothing.", "", ""),
    Example("Count to three.", "", "1 2 3"),
]


def folders(place: Path) -> list[Path]:
    return [path for path in place.iterdir() if path.is_dir()]


@pytest.fixture
def encoder() -> PromptEncoder:
    model = tiny_gist_model("llama")
    template = InstructionTemplate("\nOutput:", separator="")  # so that an empty output has no ids
    return PromptEncoder(model.tokenizer, template, model.gist_id)


def test_rows_are_those_encoded_in_memory(encoder: PromptEncoder, tmp_path: Path) -> None:
    rows, expected = tokenize_rows(ROWS, encoder, tmp_path), EncodedRows(ROWS, encoder)
    assert [rows[i] for i in range(len(rows))] == expected.rows
    assert rows.lengths == expected.lengths
    assert rows.dropped == expected.dropped == 1
    mapped = {Path(file["filename"]).parent.parent for file in rows.table.cache_files}
    assert mapped == {tmp_path}, "read from files, not kept in memory"


def test_the_same_rows_are_found_again(encoder: PromptEncoder, tmp_path: Path) -> None:
    tokenize_rows(ROWS, encoder, tmp_path)
    [made] = folders(tmp_path)
    before = made.stat().st_mtime_ns
    tokenize_rows(ROWS, encoder, tmp_path)
    assert folders(tmp_path) == [made]
    assert made.stat().st_mtime_ns == before
    tokenize_rows(ROWS, encoder, tmp_path, overwrite=True)
    assert folders(tmp_path) == [made]
    assert made.stat().st_mtime_ns > before


def test_other_texts_or_another_template_are_other_rows(
    encoder: PromptEncoder, tmp_path: Path
) -> None:
    first = tokenize_rows(ROWS, encoder, tmp_path)
    other = PromptEncoder(encoder.tokenizer, InstructionTemplate("\nAnswer:"), encoder.gist_id)
    second = tokenize_rows(ROWS, other, tmp_path)
    third = tokenize_rows([ROWS[2]], encoder, tmp_path)
    assert len(folders(tmp_path)) == 3
    assert first[0].input != second[0].input
    assert third[0] == first[1]


def test_a_row_that_cannot_be_encoded_is_named(encoder: PromptEncoder, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"row 2: .*contains <GIST>"):
        tokenize_rows([*ROWS[:2], Example("Say <GIST>.", "", "a")], encoder, tmp_path)
    with pytest.raises(DataError, match="no row has an output"):
        tokenize_rows([ROWS[1]], encoder, tmp_path)


def test_a_folder_that_cannot_be_made_is_named(encoder: PromptEncoder, tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("a file")
    with pytest.raises(SaveError, match=r"could not write tokenized rows to .*rows.*cache_dir"):
        tokenize_rows(ROWS, encoder, tmp_path / "rows")


def test_many_at_once_make_the_same_rows_once(
    encoder: PromptEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gistkit")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: tokenize_rows(ROWS, encoder, tmp_path), range(8)))
    rows = [[one[i] for i in range(len(one))] for one in made]
    assert all(each == rows[0] for each in rows)
    assert sum("tokenizing" in record.message for record in caplog.records) == 1
