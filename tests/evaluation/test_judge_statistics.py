"""Exact statistics, against their definitions in fractions."""

from fractions import Fraction
from math import comb

import pytest

from gistkit.evaluation.judge.statistics import kappa, share_interval, sign_test


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
