"""Exact statistics of counts: intervals of a share, the sign test, agreement of two judges.

Pure functions of numbers.
"""

from collections import Counter
from collections.abc import Sequence
from math import exp, lgamma, log, log1p, sqrt
from statistics import NormalDist

LEVEL = 0.95


def share_interval(count: int, total: int, *, level: float = LEVEL) -> tuple[float, float]:
    """The exact interval of a share `count / total` (Clopper and Pearson 1934), within 0 to 1.

    It holds the true share at least `level` of the time, whatever the share and the total; of
    nothing at all it is 0 to 1.

    >>> [round(bound, 4) for bound in share_interval(0, 10)]
    [0.0, 0.3085]
    """
    tail = (1 - level) / 2
    return _lower(count, total, tail), 1 - _lower(total - count, total, tail)


def sign_test(wins: int, losses: int) -> float:
    """How likely a fair coin is at least as lopsided, in either direction (exact, two-sided).

    >>> round(sign_test(6, 0), 5)
    0.03125
    """
    return min(1.0, 2 * _at_least(max(wins, losses), wins + losses, 0.5))


def kappa(ones: Sequence[str], twos: Sequence[str]) -> tuple[float, tuple[float, float]] | None:
    """Cohen's kappa (1960) of two judges' choices and its 95 % interval.

    The interval is the usual approximation by a normal distribution. None where kappa has no value:
    no choices, or both judges always chose the same.
    """
    n = len(ones)
    if not n:
        return None
    agreed = sum(one == two for one, two in zip(ones, twos, strict=True)) / n
    count, other = Counter(ones), Counter(twos)
    chance = sum(count[choice] * other[choice] for choice in count) / n**2
    if chance == 1:
        return None
    value = (agreed - chance) / (1 - chance)
    half = NormalDist().inv_cdf((1 + LEVEL) / 2) * sqrt(agreed * (1 - agreed) / n) / (1 - chance)
    return value, (max(-1.0, value - half), min(1.0, value + half))


def _lower(count: int, total: int, tail: float) -> float:
    """The share under which `count` or more of `total` has probability `tail`."""
    if count == 0:
        return 0.0
    low, high = 0.0, count / total
    for _ in range(50):  # halving: to 15 digits
        middle = (low + high) / 2
        if _at_least(count, total, middle) < tail:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _at_least(count: int, total: int, p: float) -> float:
    """The probability of `count` or more out of `total`, `count` at or above the mean."""
    if count == 0 or p == 0:
        return float(count == 0)
    chosen = lgamma(total + 1) - lgamma(count + 1) - lgamma(total - count + 1)
    if p == 1:
        return 1.0
    term = exp(chosen + count * log(p) + (total - count) * log1p(-p))
    found = 0.0
    while count <= total and term > found * 1e-17:
        found += term
        term *= (total - count) / (count + 1) * p / (1 - p)
        count += 1
    return found
