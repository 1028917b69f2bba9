"""Benchmark files: a CSV row for each example and each mode of answering it. Read and written.

The published columns come first; files may hold more. `model` names the mode: "standard" reads the
whole prompt, "gist" reads on top of a gist, "instruction" on top of the cached instruction. In the
published files of instruction caching the cached rows are called "gist" as well; they are known by
`gist_index` 0, since there the span that is kept begins with the prompt.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistkit.errors import DataError
from gistkit.files import write_text

if TYPE_CHECKING:
    from numpy import ndarray

STANDARD, GIST, INSTRUCTION = "standard", "gist", "instruction"
NAMES: Mapping[str, str] = {
    STANDARD: "no cache",
    GIST: "gist cache",
    INSTRUCTION: "instruction cache",
}
PROMPT = ("num_prompt_tokens", "num_input_tokens", "effective_num_gist_tokens", "gist_index")
PUBLISHED = ("id", *PROMPT, "first_run", "model")
COSTS = (
    "cpu_time", "cuda_time", "flops", "macs", "params", "duration", "prefill", "decode", "total",
    "peak_bytes", "kept_bytes", "joules",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """One file.

    Attributes:
        prompts: the published columns about the prompts, by name; one value an example.
        kept: tokens kept of each prompt, by mode.
        costs: by mode and by column; one value an example, in the order of their ids.
    """

    name: str
    prompts: "Mapping[str, ndarray[Any, Any]]"
    kept: "Mapping[str, ndarray[Any, Any]]"
    costs: "Mapping[str, Mapping[str, ndarray[Any, Any]]]"


def read_table(path: Path) -> Table:
    """Read a benchmark file; every mode must have run on every example (raises DataError)."""
    import numpy

    rows = _read(path)
    named = _instruction_caching(rows)
    by_mode: dict[str, dict[int, dict[str, str]]] = {}
    for line, row in enumerate(rows, 2):
        mode = named if row["model"] == GIST else row["model"]
        if mode not in NAMES:
            raise DataError(
                f"{path}, line {line}: model is {row['model']!r}; it must be one of "
                f"{', '.join(NAMES)}"
            )
        rows_of_mode = by_mode.setdefault(mode, {})
        if (number := int(row["id"])) in rows_of_mode:
            raise DataError(f"{path}, line {line}: example {number} is there twice for {mode}")
        rows_of_mode[number] = row
    if STANDARD not in by_mode or len(by_mode) < 2:
        raise DataError(
            f"{path} holds nothing to compare: it needs rows of model standard and of another"
        )
    ids = sorted(by_mode[STANDARD])
    for mode, found in by_mode.items():
        if sorted(found) != ids:
            raise DataError(f"{path}: standard and {mode} were not run on the same examples")
    columns = [name for name in COSTS if any(row.get(name) for row in rows)]

    def values(mode: str, column: str) -> "ndarray[Any, Any]":
        return numpy.array([float(by_mode[mode][i].get(column) or "nan") for i in ids])

    return Table(
        path.name,
        {name: values(STANDARD, name) for name in PROMPT},
        {mode: values(mode, "effective_num_gist_tokens") for mode in by_mode if mode != STANDARD},
        {
            mode: {
                name: column
                for name in columns
                if not numpy.isnan(column := values(mode, name)).any()
            }
            for mode in by_mode
        },
    )


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as CSV, the published columns first (raises SaveError)."""
    columns = [*PUBLISHED, *COSTS]
    columns = [name for name in columns if any(name in row for row in rows)]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_text(path, text.getvalue())


def _read(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, strict=True))
    except OSError as error:
        raise DataError(f"could not read {path}: {error.strerror}; give a benchmark CSV") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no CSV file: {error}") from error
    if not rows:
        raise DataError(f"{path} holds no rows; give the CSV that a benchmark wrote")
    missing = [name for name in PUBLISHED if name not in rows[0]]
    if missing:
        raise DataError(
            f"{path} is no benchmark file: it has no column {missing[0]}; "
            f"the published ones are {', '.join(PUBLISHED)}"
        )
    for line, row in enumerate(rows, 2):
        for name, value in row.items():
            if value == "" and name in COSTS:
                continue  # this mode has no such cost
            if name in ("id", *PROMPT, *COSTS) and not _is_number(value, whole=name == "id"):
                raise DataError(f"{path}, line {line}: {name} is {value!r:.80}, not a number")
    return rows


def _is_number(value: str | None, *, whole: bool) -> bool:
    try:
        return isfinite(int(value or "-") if whole else float(value or "-"))
    except (ValueError, OverflowError):
        return False


def _instruction_caching(rows: Sequence[Mapping[str, str]]) -> str:
    """What rows called "gist" are: where every span begins with its prompt, the instruction."""
    spans = [row for row in rows if row["model"] == GIST]
    whole = all(float(row["gist_index"]) == 0 for row in spans)
    return INSTRUCTION if spans and whole else GIST
