"""Scores of files of outputs, and their differences. Knows nothing about models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gistkit.errors import DataError
from gistkit.evaluation.outputs import matched, read_outputs
from gistkit.metrics import clean, difference, score
from gistkit.report import versions
from gistkit.stats import LEVEL

SCHEMA_VERSION = 1


def score_files(
    paths: Sequence[Path], *, unpaired: bool = False, seed: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Scores of `files` of outputs, and their `paired` differences to the last, as JSON values.

    Args:
        unpaired: the files may answer different examples; none are compared.

    Raises:
        DataError: a file is no file of outputs, or it answers other examples (unless `unpaired`).
        MissingExtraError: rouge_score is not installed.
    """
    files = [read_outputs(path) for path in paths]
    if not unpaired:
        names = [str(path) for path in paths]
        try:
            files = [
                matched(files[-1], rows, names=(names[-1], name))
                for name, rows in zip(names, files, strict=True)
            ]
        except DataError as error:
            raise DataError(f"{error}; otherwise pass `unpaired=True`") from error
    scores = [
        score([row.y_pred for row in rows], [row.y_true for row in rows], sentences=clean)
        for rows in files
    ]
    reports = zip(paths, scores, strict=True)
    return {
        "files": [{"file": str(path), **found.report(seed=seed)} for path, found in reports],
        "paired": [
            {"a": str(path), "b": str(paths[-1]), **difference(found, scores[-1], seed=seed)}
            for path, found in zip(paths[:-1], scores[:-1], strict=True)
            if not unpaired
        ],
    }


def report_head(seed: int) -> dict[str, Any]:
    """What opens every JSON report of scores."""
    return {
        "schema_version": SCHEMA_VERSION,
        "versions": versions(("gistkit", "rouge-score", "numpy")),
        "seed": seed,
        "level": LEVEL,
    }
