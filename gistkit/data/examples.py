"""Files of examples: `.json` (one array) or `.jsonl` (one object a line), plain, `.gz` or `.xz`.

    {"instruction": "Translate to French.", "input": "cat", "output": "chat", "source": "mine"}

Every error names the file and the line or item, counted from 1. Knows nothing about data sets.
"""

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

from gistkit.errors import DataError, OptionError
from gistkit.files import write_bytes
from gistkit.prompts import Example

_OPENERS: Mapping[str, Callable[[Path, str], Any]] = {".gz": gzip.open, ".xz": lzma.open}
_KINDS = (".json", ".jsonl")
FIELDS = ("instruction", "input", "output", "source")


def read_examples(
    path: str | PathLike[str],
    *,
    limit: int | None = None,
    required: Sequence[str] = ("instruction", "output"),
) -> list[Example]:
    """All examples of a file, or its first `limit`; see `iter_examples`."""
    return list(iter_examples(path, limit=limit, required=required))


def iter_examples(
    path: str | PathLike[str],
    *,
    limit: int | None = None,
    required: Sequence[str] = ("instruction", "output"),
) -> Iterator[Example]:
    """The examples of a file in order; `.jsonl` is streamed, `.json` is read whole.

    A field that is neither there nor `required` is "". Other fields are ignored, as are blank lines
    of a `.jsonl`. Nothing after example `limit` is read from a `.jsonl`.

    Raises:
        DataError: no such file, an unknown ending, a damaged archive, not UTF-8, malformed JSON, a
            missing field, a field that is not text, or no example at all.
        OptionError: `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise OptionError(f"limit is {limit}; give at least 1, or none to read everything")
    path = Path(path)
    with opened(path) as file:
        for where, row in islice(iter_objects(file, path), limit):
            yield parse_example(row, where, required=required)


def write_examples(path: str | PathLike[str], examples: Iterable[Example]) -> Path:
    """Write examples in the format that the ending names; equal examples give equal bytes.

    Raises DataError for an unknown ending, and SaveError; what was there before is untouched.
    """
    path = Path(path)
    content = (to_json if _kind(path) == ".json" else to_jsonl)(examples)
    if path.suffix == ".gz":
        content = gzip.compress(content, compresslevel=6, mtime=0)
    elif path.suffix == ".xz":
        content = lzma.compress(content)
    return write_bytes(path, content)


def to_json(examples: Iterable[Example]) -> bytes:
    """One array, escaped to ASCII on one line: the format of the published Alpaca+ files."""
    return json.dumps([_row(example) for example in examples]).encode("ascii")


def to_jsonl(examples: Iterable[Example]) -> bytes:
    """One object a line, UTF-8."""
    encode = json.JSONEncoder(ensure_ascii=False).encode
    return "".join(encode(_row(example)) + "\n" for example in examples).encode("utf-8")


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, decompressed; errors while reading become a DataError."""
    open_file = _OPENERS.get(path.suffix, io.open)
    try:
        with open_file(path, "rb") as file:
            yield file
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        message = f"{path}: damaged {path.suffix} archive ({error}); fetch it again"
        raise DataError(message) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def iter_objects(file: BinaryIO, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each JSON object in `file`, after its position in words ("a.jsonl line 3").

    `path` names the file in messages, and its ending the format. Raises DataError.
    """
    rows = _array_items(file, path) if _kind(path) == ".json" else _lines(file, path)
    empty = True
    for where, row in rows:
        empty = False
        if not isinstance(row, dict):
            raise DataError(f"{where}: expected an object, found {_describe(row)}")
        yield where, row
    if empty:
        raise DataError(f"{path}: holds no examples; expected at least one")


def parse_example(
    row: Mapping[str, Any], where: str, *, required: Sequence[str] = ("instruction", "output")
) -> Example:
    """The Example in a JSON object; `where` opens the message of the DataError it may raise."""
    fields = []
    for name in FIELDS:
        value = row.get(name, "")
        if not isinstance(value, str):
            raise DataError(f"{where}: field '{name}' is {_describe(value)}; expected a string")
        if not value and name not in row and name in required:
            raise DataError(f"{where}: field '{name}' is missing")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError(
                f"{where}: field '{name}' has half a surrogate pair; not valid text"
            ) from None
        fields.append(value)
    return Example(*fields)


def _array_items(file: BinaryIO, path: Path) -> Iterator[tuple[str, object]]:
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} line {line}: not UTF-8; convert the file to UTF-8") from error
    if not text.strip():
        return
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; one object a line? name it .jsonl" if error.msg == "Extra data" else ""
        where = f"{path} line {error.lineno} column {error.colno}"
        raise DataError(f"{where}: malformed JSON ({error.msg}){hint}") from error
    except (ValueError, RecursionError) as error:  # an endless number, endless brackets
        raise DataError(f"{path}: malformed JSON ({error})") from error
    if not isinstance(items, list):
        raise DataError(f"{path}: expected an array of objects, found {_describe(items)}")
    for number, item in enumerate(items, 1):
        yield f"{path} item {number}", item


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(file, 1):
        where = f"{path} line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if text.strip():
                yield where, json.loads(text)
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not UTF-8; convert the file to UTF-8") from error
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise DataError(f"{where}: malformed JSON ({reason}); expected one object") from error


def _kind(path: Path) -> str:
    name = path.with_suffix("") if path.suffix in _OPENERS else path
    if name.suffix not in _KINDS:
        endings = "expected .json or .jsonl, alone or with .gz or .xz"
        raise DataError(f"{path}: cannot tell the format by its ending; {endings}")
    return name.suffix


def _row(example: Example) -> dict[str, str]:
    return {name: getattr(example, name) for name in FIELDS}


def _describe(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")
