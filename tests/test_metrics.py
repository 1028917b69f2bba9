"""ROUGE against the published outputs; intervals against worked examples."""

import csv
import gzip
import math
import sys
from pathlib import Path

import pytest

from gistkit import metrics
from gistkit.errors import MissingExtraError, OptionError


def published_outputs(path: Path) -> tuple[list[str], list[str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["y_pred"] for row in rows], [row["y_true"] for row in rows]


@pytest.mark.parametrize(
    ("model", "steps", "scores"),
    [
        ("FLAN-T5-gist-1", 16000, {"rouge1": 25.02, "rouge2": 8.94, "rougeL": 21.69}),
        ("FLAN-T5-neg_control-1", 16000, {"rougeL": 12.36}),
    ],
)
def test_published_outputs_get_their_measured_scores(
    shared: Path, model: str, steps: int, scores: dict[str, float]
) -> None:
    """The means measured by another program on the same 252 human examples."""
    pytest.importorskip("rouge_score")
    folder = shared / "data" / "reference_results" / "model_outputs" / model
    texts = published_outputs(folder / f"outputs-{steps}-validation_human.csv.gz")
    measured = metrics.rouge(*texts, kinds=tuple(scores))
    assert measured == pytest.approx(scores, abs=0.02)


def test_rouge_of_equal_different_and_empty_texts() -> None:
    pytest.importorskip("rouge_score")
    predictions = ["The cats sat.", "dog", "", "?!"]
    scores = metrics.rouge_scores(predictions, ["the cat sat", "cat", "a", "a"])
    assert set(scores) == {"rouge1", "rouge2", "rougeL", "rougeLsum"}
    assert all(values == pytest.approx([100, 0, 0, 0]) for values in scores.values())
    assert metrics.rouge(["a", ""], ["a", "a"])["rougeL"] == 50.0


def test_rouge_lsum_looks_at_sentences() -> None:
    """Sentences in another order: each matches whole, their common subsequence is one of two."""
    pytest.importorskip("rouge_score")
    scores = metrics.rouge(["Dogs bark. Cats meow."], ["Cats meow. Dogs bark."])
    assert scores["rougeL"] == pytest.approx(50)
    assert scores["rougeLsum"] == pytest.approx(100)


def test_sentences_end_where_a_reader_would_end_them() -> None:
    assert metrics.split_sentences(" One. Two!  Three?\nFour ") == "One.\nTwo!\nThree?\nFour"
    assert metrics.split_sentences('He said "Go." Then 3.5 km.') == 'He said "Go."\nThen 3.5 km.'
    assert metrics.split_sentences("") == ""


def test_without_rouge_score_the_message_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(MissingExtraError, match="gistkit\\[eval\\]"):
        metrics.rouge(["a"], ["a"])


def test_exact_match_ignores_outer_whitespace_only() -> None:
    predictions = ["a", " a\n", "A", "a.", ""]
    assert metrics.exact_match(predictions, ["a"] * 4 + [""]) == 60.0


@pytest.mark.parametrize("right", [0, 1, 8, 10])
def test_the_wilson_interval_ends_where_a_z_test_would_just_not_reject(right: int) -> None:
    """Its definition: each end p has |share - p| = z sqrt(p (1 - p) / n)."""
    predictions = ["a"] * right + ["b"] * (10 - right)
    share = right / 10
    for end in metrics.exact_match_interval(predictions, ["a"] * 10):
        p = end / 100
        assert abs(share - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / 10), abs=1e-6)


def test_a_higher_level_gives_a_wider_interval() -> None:
    low, high = metrics.exact_match_interval(["a", "b"], ["a", "a"], level=0.5)
    wide_low, wide_high = metrics.exact_match_interval(["a", "b"], ["a", "a"], level=0.99)
    assert 0 < wide_low < low < 50 < high < wide_high < 100


@pytest.mark.parametrize(
    "score", [metrics.rouge, metrics.exact_match, metrics.exact_match_interval]
)
def test_pairs_must_be_pairs(score: object) -> None:
    assert callable(score)
    with pytest.raises(OptionError, match="no predictions"):
        score([], [])
    with pytest.raises(OptionError, match="2 predictions but 1 references"):
        score(["a", "b"], ["a"])


def test_bad_options_are_refused() -> None:
    with pytest.raises(OptionError, match="'rouge9'"):
        metrics.rouge(["a"], ["a"], kinds=["rouge9"])
    with pytest.raises(OptionError, match=r"`level` is 95"):
        metrics.exact_match_interval(["a"], ["a"], level=95)


def test_every_metric_of_texts_has_a_value_for_each_and_an_interval() -> None:
    """What reports rely on, for every row of the table; those without a function need a model."""
    pytest.importorskip("rouge_score")
    texts = metrics.Texts(["a b", "c", "", "e f g"], ["a b", "d", "x", "e f h"])
    scored = {m.name: m for m in metrics.METRICS.values() if m.score is not None}
    assert list(metrics.METRICS)[: len(scored)] == list(scored)
    for name, metric in scored.items():
        assert metric.score is not None
        values = metric.score(texts)
        low, high = metric.interval(values, seed=0)
        assert len(values) == 4
        assert low < sum(values) / 4 < high, name
    assert {name for name in metrics.METRICS if name not in scored} == {
        "gen_len", "loss", "perplexity",
    }  # fmt: skip
