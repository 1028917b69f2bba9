"""Intervals and tests, against their definitions and worked examples."""

from fractions import Fraction
from math import comb

import pytest

from gistkit import stats
from gistkit.errors import OptionError
from gistkit.stats import kappa, share_interval, sign_test


def at_least(count: int, total: int, p: float) -> float:
    """The probability of `count` or more of `total`, in exact arithmetic."""
    share = Fraction(p)
    terms = (
        comb(total, i) * share**i * (1 - share) ** (total - i) for i in range(count, total + 1)
    )
    return float(sum(terms))


@pytest.mark.parametrize(
    ("count", "total"), [(1, 1), (1, 10), (5, 10), (9, 10), (84, 252), (1, 300)]
)
def test_the_interval_ends_where_the_tails_are_a_fortieth(count: int, total: int) -> None:
    low, high = share_interval(count, total)
    assert low < count / total <= high
    assert at_least(count, total, low) == pytest.approx(0.025)
    if count < total:
        assert 1 - at_least(count + 1, total, high) == pytest.approx(0.025)


def test_intervals_of_nothing_and_of_all() -> None:
    assert share_interval(0, 0) == (0, 1)
    assert share_interval(0, 10) == pytest.approx((0, 1 - 0.025**0.1))
    assert share_interval(10, 10) == pytest.approx((0.025**0.1, 1))
    assert share_interval(5000, 10000) == pytest.approx((0.49015, 0.50985), abs=1e-5)


def test_sign_test() -> None:
    assert sign_test(0, 0) == sign_test(7, 7) == 1
    assert sign_test(0, 6) == sign_test(6, 0) == pytest.approx(2 / 64)
    assert sign_test(84, 122) == pytest.approx(2 * at_least(122, 206, 0.5))


def test_kappa() -> None:
    """Cohen's own kind of example: agreement 0.7, by chance 0.5, so 0.4."""
    ones = ["a"] * 25 + ["b"] * 25
    twos = ["a"] * 20 + ["b"] * 5 + ["a"] * 10 + ["b"] * 15
    found = kappa(ones, twos)
    assert found is not None
    value, (low, high) = found
    assert value == pytest.approx(0.4)
    assert low < value < high
    assert kappa(ones, ones) == (1, (1, 1))
    assert kappa(["tie"] * 5, ["tie"] * 5) is None
    assert kappa([], []) is None


def test_the_bootstrap_interval_follows_its_seed_and_the_standard_error() -> None:
    scores = [float(value) for value in range(100)]
    low, high = stats.mean_interval(scores, seed=1)
    assert (low, high) == stats.mean_interval(scores, seed=1)
    assert (low, high) != stats.mean_interval(scores, seed=2)
    half = 1.96 * 28.87 / 10  # the mean's standard error: sd 28.87, n 100
    assert (low, high) == pytest.approx((49.5 - half, 49.5 + half), abs=1.0)
    assert stats.mean_interval([7.0, 7.0], seed=0) == (7.0, 7.0)


def test_the_interval_of_a_rate_weighs_examples_by_their_counts() -> None:
    rate, (low, high) = stats.rate_interval([1.0, 9.0], [1, 3], seed=0)
    assert rate == 10 / 4
    assert (low, high) == (1.0, 3.0)  # two draws of the same example are its own rate
    with pytest.raises(OptionError, match="count above zero"):
        stats.rate_interval([1.0], [0], seed=0)


def test_paired_scores_are_resampled_together() -> None:
    """What both sides share drops out: a constant difference has an interval without width."""
    scores = [float(value) for value in range(50)]
    difference, interval = stats.paired_difference([s + 2 for s in scores], scores, seed=0)
    assert (difference, interval) == (2, (2, 2))
    ratio = stats.median_ratio([3 * s for s in range(1, 20)], range(1, 20), seed=0)
    assert (ratio.median, ratio.low, ratio.high) == (3, 3, 3)
    assert (ratio.verdict(3), ratio.verdict(2.9)) == ("met", "missed")
    with pytest.raises(OptionError, match="50 scores and 1 others"):
        stats.paired_difference(scores, [1.0], seed=0)


def test_the_interval_is_the_same_however_many_indices_fit_into_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = [float(value**2) for value in range(101)]
    whole = stats.mean_interval(scores, seed=3)
    for fit in (1, 1000):
        monkeypatch.setattr(stats, "_AT_ONCE", fit)
        assert stats.mean_interval(scores, seed=3) == whole


def test_a_median_is_within_its_interval() -> None:
    found = stats.median_interval([1.0, 2.0, 3.0, 10.0], seed=0)
    assert 1 <= found.low <= found.median == 2.5 <= found.high <= 10
    assert found.verdict(2) == "open"


def test_bad_options_are_refused() -> None:
    with pytest.raises(OptionError, match="no scores"):
        stats.mean_interval([], seed=0)
    with pytest.raises(OptionError, match="`samples` is 0"):
        stats.mean_interval([1.0], seed=0, samples=0)
    with pytest.raises(OptionError, match="`level` is 2"):
        stats.mean_interval([1.0], seed=0, level=2)
