"""`gistkit evaluate --outputs`: score CSV files; and how scores are printed."""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from json import dumps
from pathlib import Path
from typing import Any

from gistkit.cli.run import emit
from gistkit.evaluation.scores import LEVEL, NAMES

SCHEMA_VERSION = 1


def score_files(paths: Sequence[Path], *, paired: bool, seed: int, as_json: bool) -> None:
    """Print the scores of each file, and what each differs from the last.

    Raises:
        DataError: a file is no file of outputs, or (where `paired`) answers other examples.
        MissingExtraError: rouge_score is not installed.
    """
    from gistkit.evaluation.outputs import matched, read_outputs
    from gistkit.evaluation.scores import difference, score
    from gistkit.metrics import clean

    rows = [read_outputs(path) for path in paths]
    if paired:
        last = len(rows) - 1
        rows = [
            matched(rows[last], one, names=(str(paths[last]), str(path)))
            for path, one in zip(paths, rows, strict=True)
        ]
    scores = [
        score([row.y_pred for row in one], [row.y_true for row in one], sentences=clean)
        for one in rows
    ]
    reports = [
        {"file": str(path), **one.report(seed=seed)}
        for path, one in zip(paths, scores, strict=True)
    ]
    differences = [
        {"a": str(path), "b": str(paths[-1]), **difference(one, scores[-1], seed=seed)}
        for path, one in zip(paths[:-1], scores[:-1], strict=True)
        if paired
    ]
    if as_json:
        found = reports[0] if len(paths) == 1 else {"files": reports, "paired": differences}
        emit(dumps({**head(seed), **found}, ensure_ascii=False))
        return
    names = labels(paths)
    columns = dict(zip(names, reports, strict=True))
    print_scores(
        columns,
        {f"{name} - {names[-1]}": one for name, one in zip(names[:-1], differences, strict=False)},
    )


def labels(paths: Sequence[Path]) -> list[str]:
    """Short names of files: what their paths do not share; numbered where they are equal."""
    shared = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    names = [str(path.absolute().relative_to(shared)) for path in paths]
    if len({Path(name).name for name in names}) == 1 < len(set(names)):
        names = [str(Path(name).parent) for name in names]  # one file name in many folders
    return [
        f"{name} ({number})" if names.count(name) > 1 else name
        for number, name in enumerate(names, 1)
    ]


def head(seed: int) -> dict[str, Any]:
    """What opens every JSON report of scores."""
    return {
        "schema_version": SCHEMA_VERSION,
        "versions": {name: version(name) for name in ("gistkit", "rouge-score", "numpy")},
        "seed": seed,
        "level": LEVEL,
    }


def print_scores(
    columns: Mapping[str, Mapping[str, Any]],
    differences: Mapping[str, Mapping[str, Any]],
    *,
    title: str | None = None,
    names: Sequence[str] = NAMES,
) -> None:
    """Scores side by side, each with its interval; then the differences."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    tables = [(title, columns, _mean)]
    if differences:
        tables.append(("paired differences", differences, _difference))
    for heading, shown, cell in tables:
        table = Table(title=heading, title_justify="left")
        table.add_column()
        for name in shown:
            table.add_column(Text(name, overflow="fold"))
        if shown is columns:
            table.add_row("rows", *(str(report["rows"]) for report in shown.values()))
        for name in names:
            if any(name in report for report in shown.values()):
                table.add_row(name, *(cell(report, name) for report in shown.values()))
        console.print(table)


def _mean(report: Mapping[str, Any], name: str) -> str:
    interval = report["intervals"].get(name)
    return f"{report[name]:.2f}" + (
        "" if interval is None else " [{:.1f}, {:.1f}]".format(*interval)
    )


def _difference(report: Mapping[str, Any], name: str) -> str:
    low, high = report[name]["interval"]
    return f"{report[name]['difference']:+.2f} [{low:+.1f}, {high:+.1f}]"
