"""Scores of answers with their intervals, and the difference between two sets of answers.

    answers ── score ──> Scores ── report ──> means and intervals
                           └────── difference ──> paired differences

Knows nothing about models.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from gistkit.evaluation.outputs import matched, read_outputs
from gistkit.metrics import METRICS, Texts, clean, split_sentences
from gistkit.stats import LEVEL, paired_difference

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Scores:
    """The value of every example, by metric: those of `METRICS` that texts alone decide."""

    values: Mapping[str, Sequence[float]]

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def means(self) -> dict[str, float]:
        """The mean of each, by name."""
        return {name: fmean(values) for name, values in self.values.items()}

    def interval(self, name: str, *, seed: int) -> tuple[float, float]:
        """The 95 % interval of a mean."""
        return METRICS[name].interval(self.values[name], seed=seed)

    def report(self, *, seed: int) -> dict[str, Any]:
        """Means, `intervals` by name, and the number of `rows`, as JSON values."""
        intervals = {name: list(self.interval(name, seed=seed)) for name in self.values}
        return {**self.means(), "rows": len(self), "intervals": intervals}


def score(
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    sentences: Callable[[str], str] = split_sentences,
) -> Scores:
    """Score every prediction, both texts cleaned as published (`gistkit.metrics.clean`).

    Args:
        sentences: as for `gistkit.metrics.rouge_scores`.

    Raises:
        MissingExtraError: the package rouge_score is not installed.
        OptionError: no predictions, or not as many references.
    """
    texts = Texts(list(map(clean, predictions)), list(map(clean, references)), sentences)
    return Scores({m.name: m.score(texts) for m in METRICS.values() if m.score is not None})


def difference(scores: Scores, others: Scores, *, seed: int) -> dict[str, Any]:
    """`scores` minus `others` by name: `difference` and its 95 % `interval`, paired bootstrap.

    Raises OptionError where they are not of as many rows.
    """
    found = {}
    for name, values in scores.values.items():
        if METRICS[name].greater_is_better is not None:
            mean, interval = paired_difference(values, others.values[name], seed=seed)
            found[name] = {"difference": mean, "interval": list(interval)}
    return found


def score_files(
    paths: Sequence[Path], *, paired: bool = True, seed: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Scores of `files` of outputs, and what each differs from the last (`paired`), as JSON values.

    Args:
        paired: the files answer the same examples; False compares none.

    Raises:
        DataError: a file is no file of outputs, or (where `paired`) answers other examples.
        MissingExtraError: rouge_score is not installed.
    """
    files = [read_outputs(path) for path in paths]
    if paired:
        names = [str(path) for path in paths]
        files = [
            matched(files[-1], rows, names=(names[-1], name))
            for name, rows in zip(names, files, strict=True)
        ]
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
            if paired
        ],
    }


def report_head(seed: int) -> dict[str, Any]:
    """What opens every JSON report of scores."""
    return {
        "schema_version": SCHEMA_VERSION,
        "versions": {name: version(name) for name in ("gistkit", "rouge-score", "numpy")},
        "seed": seed,
        "level": LEVEL,
    }
