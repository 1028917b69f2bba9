"""Files of outputs: CSV with the published columns `x,y_pred,y_true`, one row an example.

`x` is the prompt with its gist tokens. As published, the texts of `y_pred` and `y_true` hold one
sentence a line. Knows nothing about models or scores.
"""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from gistkit.data.examples import opened
from gistkit.errors import DataError
from gistkit.files import write_text
from gistkit.metrics import clean, split_sentences
from gistkit.prompts import GIST_TOKEN

COLUMNS = ("x", "y_pred", "y_true")

_HINT = "only answers to the same examples can be compared"
_SPAN = re.compile(rf"(\s*{GIST_TOKEN})+\s*")


@dataclass(frozen=True, slots=True)
class Output:
    """One row: the prompt, the answer and the reference. An empty answer is ""."""

    x: str
    y_pred: str
    y_true: str


def read_outputs(path: str | PathLike[str]) -> list[Output]:
    """The rows of a `.csv`, alone or with `.gz` or `.xz`; other columns are ignored.

    Raises DataError: no such file, damaged, not UTF-8, a missing column, a broken row, no row.
    """
    path = Path(path)
    with opened(path) as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} line {line}: not UTF-8; convert the file to UTF-8") from error
    try:
        return _parse(text, path)
    except csv.Error as error:
        raise DataError(f"{path}: malformed CSV ({error}); write the file again") from error


def _parse(text: str, path: Path) -> list[Output]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = next(reader, [])
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise DataError(
            f"{path}: no column {' or '.join(missing)}; files of outputs have the columns "
            f"{','.join(COLUMNS)}"
        )
    columns = [header.index(name) for name in COLUMNS]
    rows = []
    for row in reader:
        if not row:
            continue  # a blank line
        if len(row) != len(header):
            raise DataError(
                f"{path} line {reader.line_num}: {len(row)} fields for {len(header)} columns; "
                "write the file again"
            )
        rows.append(Output(*(row[column] for column in columns)))
    if not rows:
        raise DataError(f"{path}: holds no rows; expected at least one")
    return rows


def write_outputs(path: Path, rows: Iterable[Output]) -> None:
    """Write rows as CSV, sentences one a line, whole or not at all (raises SaveError)."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for row in rows:
        writer.writerow((row.x, split_sentences(row.y_pred), split_sentences(row.y_true)))
    write_text(path, text.getvalue())


def matched(
    rows: Sequence[Output], others: Sequence[Output], *, names: tuple[str, str] = ("A", "B")
) -> list[Output]:
    """`others` in the order of `rows`, so that each answers the same example.

    Examples are the same if instruction, input and reference are, ignoring gist tokens and white
    space. Either may be cut off: a longer gist leaves less room for the prompt. Raises DataError,
    with `names` in its message, if there is no such order.
    """
    if len(rows) != len(others):
        raise DataError(
            f"{names[0]} has {len(rows)} rows and {names[1]} has {len(others)}; {_HINT}"
        )
    examples, other_examples = [_example(row) for row in rows], [_example(row) for row in others]
    if all(map(_same, examples, other_examples)):
        return list(others)
    indices: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index in reversed(range(len(other_examples))):
        indices[other_examples[index]].append(index)
    ordered = []
    for number, example in enumerate(examples, 1):
        if not indices.get(example):
            raise DataError(
                f"row {number} of {names[0]} ({example[0][:60]!r}) is not in {names[1]}; {_HINT}"
            )
        ordered.append(others[indices[example].pop()])
    return ordered


def _example(row: Output) -> tuple[str, str]:
    prompt = _SPAN.sub(" ", clean(row.x))
    return " ".join(prompt.split()), " ".join(clean(row.y_true).split())


def _same(example: tuple[str, str], other: tuple[str, str]) -> bool:
    return all(a.startswith(b) or b.startswith(a) for a, b in zip(example, other, strict=True))
