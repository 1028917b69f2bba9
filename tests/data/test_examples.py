"""Readers say what is wrong and where; writers and readers agree."""

import gzip
import itertools
import json
from pathlib import Path

import pytest

from gistkit.data.examples import iter_examples, read_examples, to_json, to_jsonl, write_examples
from gistkit.errors import DataError, OptionError, SaveError
from gistkit.prompts import Example

EXAMPLES = [
    Example("Greet.", "Ann\nand Bob", "Hello, Ann and Bob ✓", "mine"),
    Example("Say nothing."),
]
ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".json.xz", ".jsonl.xz")


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_written_is_read(tmp_path: Path, ending: str) -> None:
    path = write_examples(tmp_path / f"a{ending}", EXAMPLES)
    assert read_examples(path) == EXAMPLES
    assert read_examples(path, limit=1) == EXAMPLES[:1]
    assert read_examples(path, limit=3) == EXAMPLES


@pytest.mark.parametrize("ending", ENDINGS)
def test_equal_examples_give_equal_bytes(tmp_path: Path, ending: str) -> None:
    first, second = (write_examples(tmp_path / f"{n}{ending}", EXAMPLES) for n in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_optional_fields_blank_lines_a_bom_and_other_fields_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = '{"instruction": "a", "output": "b", "task": 7}\n\n{"output": "", "instruction": ""}\r\n'
    path.write_bytes(b"\xef\xbb\xbf" + rows.encode())
    assert read_examples(path) == [Example("a", output="b"), Example("")]


def test_output_may_be_optional(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"instruction": "a"}')
    assert read_examples(path, required=("instruction",)) == [Example("a")]


def test_jsonl_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(to_jsonl(EXAMPLES) + b"never read")
    assert list(itertools.islice(iter_examples(path), 2)) == EXAMPLES
    assert read_examples(path, limit=2) == EXAMPLES


GOOD = b'{"instruction": "a", "output": "b"}'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl: holds no examples"),
        ("a.jsonl", b"\n \n", "a.jsonl: holds no examples"),
        ("a.json", b" ", "a.json: holds no examples"),
        ("a.json", b"[]", "a.json: holds no examples"),
        ("a.jsonl", GOOD + b"\n{", "a.jsonl line 2: malformed JSON"),
        ("a.jsonl", GOOD + b"\n[1]", "a.jsonl line 2: expected an object, found an array"),
        ("a.jsonl", GOOD + b'\n\n"x"', "a.jsonl line 3: expected an object, found a string"),
        ("a.jsonl", GOOD + b"\n\xff", "a.jsonl line 2: not UTF-8"),
        ("a.jsonl", b'{"instruction": "a"}', "a.jsonl line 1: field 'output' is missing"),
        ("a.jsonl", b'{"output": "a"}', "a.jsonl line 1: field 'instruction' is missing"),
        (
            "a.jsonl",
            b'{"instruction": "a", "input": null, "output": "b"}',
            "a.jsonl line 1: field 'input' is null; expected a string",
        ),
        (
            "a.jsonl",
            b'{"instruction": "a", "output": true}',
            "a.jsonl line 1: field 'output' is a boolean; expected a string",
        ),
        (
            "a.jsonl",
            b'{"instruction": "a", "output": "\\ud83d"}',
            "a.jsonl line 1: field 'output' has half a surrogate pair",
        ),
        ("a.jsonl", b"[" * 100_000, "a.jsonl line 1: malformed JSON"),
        ("a.jsonl", b"9" * 10_000, "a.jsonl line 1: malformed JSON"),
        ("a.json", b"[" * 100_000, "a.json: malformed JSON"),
        ("a.json", b"[" + GOOD + b",\n 7]", "a.json item 2: expected an object, found a number"),
        ("a.json", b"[" + GOOD + b",\n ?]", "a.json line 2 column 2: malformed JSON"),
        ("a.json", b"[" + GOOD + b",\n \xff]", "a.json line 2: not UTF-8"),
        ("a.json", GOOD, "a.json: expected an array of objects, found an object"),
        ("a.json", GOOD + b"\n" + GOOD, "one object a line? name it .jsonl"),
        ("a.jsonl.gz", GOOD, "a.jsonl.gz: damaged .gz archive"),
        ("a.jsonl.gz", gzip.compress(GOOD * 99, mtime=0)[:-9], "a.jsonl.gz: damaged .gz archive"),
        ("a.json.xz", GOOD, "a.json.xz: damaged .xz archive"),
        ("a.csv", GOOD, "a.csv: cannot tell the format by its ending"),
        ("a.gz", GOOD, "a.gz: cannot tell the format by its ending"),
    ],
)
def test_a_bad_file_is_explained_in_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_flipped_byte_in_an_archive_is_found(tmp_path: Path) -> None:
    path = write_examples(tmp_path / "a.jsonl.gz", EXAMPLES * 50)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.jsonl\.gz"):
        read_examples(path)


def test_no_file_a_folder_and_a_bad_limit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_examples(tmp_path / "a.json")
    (tmp_path / "b.json").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read_examples(tmp_path / "b.json")
    with pytest.raises(OptionError, match="limit is 0"):
        read_examples(tmp_path / "b.json", limit=0)


def test_writing_where_one_cannot_or_in_no_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError):
        write_examples(tmp_path / "file" / "a.json", EXAMPLES)
    with pytest.raises(DataError, match="ending"):
        write_examples(tmp_path / "a.txt", EXAMPLES)


def test_json_is_one_ascii_line_with_fields_in_order() -> None:
    assert to_json(EXAMPLES[:1]).isascii()
    assert list(json.loads(to_json(EXAMPLES))[0]) == ["instruction", "input", "output", "source"]
