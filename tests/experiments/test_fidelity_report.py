"""AUROC and the choice of a threshold, on rows whose answer is known."""

import numpy as np
import pytest

from experiments.fidelity_report import auroc, choose


def row(score: float, differs: int) -> dict[str, object]:
    return {"given": {"score": score}, "differs": [place < differs for place in range(4)]}


def test_auroc_counts_pairs_and_halves_ties() -> None:
    scores = np.array([0.1, 0.5, 0.5, 0.9])
    bad, good = np.array([2.0, 1, 0, 0]), np.array([0.0, 1, 3, 4])
    pairs = [
        (1.0 if low < high else 0.5 if low == high else 0.0) * bad[i] * good[j]
        for i, low in enumerate(scores)
        for j, high in enumerate(scores)
    ]
    assert auroc(scores, bad, good) == pytest.approx(sum(pairs) / (bad.sum() * good.sum()))
    assert np.isnan(auroc(scores, bad, np.zeros(4)))


def test_the_threshold_is_the_lowest_that_keeps_answers_alike() -> None:
    assert choose([row(0.5, 4), row(0.72, 2), row(0.8, 0), row(0.99, 0)]) == 0.73
