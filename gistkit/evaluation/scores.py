"""Scores of answers with their intervals, and the difference between two sets of answers.

    answers ── score ──> Scores ── report ──> means and intervals
                           └────── difference ──> paired differences

Knows nothing about models or files.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from gistkit.metrics import (
    ROUGE_KINDS,
    clean,
    exact_match_interval,
    exact_matches,
    rouge_scores,
    split_sentences,
)
from gistkit.stats import LEVEL, mean_interval, paired_difference

NAMES = (*ROUGE_KINDS, "exact_match", "words")
COMPARED = (*ROUGE_KINDS, "exact_match")


@dataclass(frozen=True, slots=True)
class Scores:
    """Values of each example by name: four kinds of ROUGE and exact match in percent, `words`."""

    values: Mapping[str, Sequence[float]]
    exact_match_interval: tuple[float, float]

    def __len__(self) -> int:
        return len(self.values["words"])

    def means(self) -> dict[str, float]:
        """The mean of each, by name."""
        return {name: fmean(self.values[name]) for name in NAMES}

    def interval(self, name: str, *, seed: int) -> tuple[float, float]:
        """The 95 % interval of a mean: by bootstrap; of exact match by Wilson's formula.

        A bootstrap of no or only exact matches would claim to be certain.
        """
        if name == "exact_match":
            return self.exact_match_interval
        return mean_interval(self.values[name], seed=seed, level=LEVEL)

    def report(self, *, seed: int) -> dict[str, Any]:
        """Means, `intervals` by name, and the number of `rows`, as JSON values."""
        intervals = {name: list(self.interval(name, seed=seed)) for name in NAMES}
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
    predictions, references = list(map(clean, predictions)), list(map(clean, references))
    return Scores(
        {
            **rouge_scores(predictions, references, sentences=sentences),
            "exact_match": exact_matches(predictions, references),
            "words": [float(len(prediction.split())) for prediction in predictions],
        },
        exact_match_interval(predictions, references, level=LEVEL),
    )


def difference(scores: Scores, others: Scores, *, seed: int) -> dict[str, Any]:
    """`scores` minus `others` by name: `difference` and its 95 % `interval`, paired bootstrap.

    Raises OptionError where they are not of as many rows.
    """
    found = {}
    for name in COMPARED:
        mean, interval = paired_difference(
            scores.values[name], others.values[name], seed=seed, level=LEVEL
        )
        found[name] = {"difference": mean, "interval": list(interval)}
    return found
