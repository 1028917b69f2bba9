"""Intervals and tests for results: each once, for the whole package. Pure functions of numbers.

What is resampled is always a whole row: paired values stay together. The same seed gives the same
interval.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, lgamma, log, log1p, sqrt
from statistics import NormalDist, fmean, median
from typing import TYPE_CHECKING, Any

from gistkit.errors import OptionError

if TYPE_CHECKING:  # numpy is slow to import; only the bootstrap needs it
    from numpy import ndarray

    Array = ndarray[Any, Any]

LEVEL = 0.95
_AT_ONCE = 4_000_000  # indices held in memory


@dataclass(frozen=True, slots=True)
class Interval:
    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def verdict(self, most: float) -> str:
        """ "met" or "missed" where the whole interval is on one side of `most`, else "open"."""
        return "met" if self.high <= most else "missed" if self.low > most else "open"


def bootstrap(
    statistic: "Callable[[Array], Array]",
    size: int,
    *,
    seed: int,
    samples: int = 1000,
    level: float = LEVEL,
    method: Any = "linear",
) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic of `size` rows.

    Args:
        statistic: row numbers [R, size], drawn with replacement -> R values.
        method: how `numpy.quantile` interpolates.

    Raises:
        OptionError: no rows, no samples, or a level that is not between 0 and 1.
    """
    import numpy

    _check_level(level)
    if size < 1:
        raise OptionError("there are no scores to draw from; give at least one")
    if samples < 1:
        raise OptionError(f"`samples` is {samples}; give at least 1")
    rng = numpy.random.default_rng(seed)
    step = max(1, _AT_ONCE // size)
    drawn = [
        statistic(rng.integers(size, size=(min(step, samples - start), size)))
        for start in range(0, samples, step)
    ]
    ends = [(1 - level) / 2, (1 + level) / 2]
    low, high = numpy.quantile(numpy.concatenate(drawn), ends, method=method)
    return float(low), float(high)


def mean_interval(
    scores: Sequence[float], *, seed: int, samples: int = 1000, level: float = LEVEL
) -> tuple[float, float]:
    """The bootstrap interval of the mean of `scores`; raises as `bootstrap`."""
    import numpy

    values = numpy.asarray(scores, dtype=numpy.float64)
    return bootstrap(
        lambda rows: values[rows].mean(1), len(values), seed=seed, samples=samples, level=level
    )


def rate_interval(
    totals: Sequence[float], counts: Sequence[float], *, seed: int
) -> tuple[float, tuple[float, float]]:
    """The sum of `totals` over the sum of `counts` (nats per token, say), and its interval.

    Raises as `bootstrap`, and where a count is not above zero or has no total.
    """
    import numpy

    if len(totals) != len(counts) or not totals or min(counts) <= 0:
        raise OptionError("give at least one sample, and to each total a count above zero")
    sums, numbers = (numpy.asarray(v, dtype=numpy.float64) for v in (totals, counts))
    interval = bootstrap(
        lambda rows: sums[rows].sum(1) / numbers[rows].sum(1), len(sums), seed=seed
    )
    return float(sums.sum() / numbers.sum()), interval


def paired_difference(
    scores: Sequence[float], others: Sequence[float], *, seed: int
) -> tuple[float, tuple[float, float]]:
    """The mean of `scores` minus that of `others`, and its interval by the paired bootstrap.

    Both hold the same examples in the same order: what makes an example hard for both does not
    widen the interval. Raises as `bootstrap`, and where their numbers differ.
    """
    if len(scores) != len(others):
        raise OptionError(f"{len(scores)} scores and {len(others)} others are no pairs")
    differences = [score - other for score, other in zip(scores, others, strict=True)]
    return fmean(differences), mean_interval(differences, seed=seed)


def median_interval(values: Sequence[float], *, seed: int, samples: int = 2000) -> Interval:
    """The median of `values` and its bootstrap interval; raises as `bootstrap`."""
    import numpy

    array = numpy.asarray(values, dtype=numpy.float64)
    low, high = bootstrap(
        lambda rows: numpy.median(array[rows], axis=1), len(array), seed=seed, samples=samples
    )
    return Interval(median(values), low, high)


def median_ratio(
    top: Sequence[float], bottom: Sequence[float], *, seed: int, samples: int = 2000
) -> Interval:
    """The median of the paired ratios top[i] / bottom[i], with its bootstrap interval."""
    ratios = [a / b for a, b in zip(top, bottom, strict=True)]
    return median_interval(ratios, seed=seed, samples=samples)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the ordered values lie, by linear interpolation."""
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def wilson_interval(count: int, total: int, *, level: float = LEVEL) -> tuple[float, float]:
    """The interval of a share `count / total` (Wilson 1927), within 0 to 1.

    Unlike a bootstrap's it has width where the share is 0 or 1. Raises OptionError if `level` is
    not between 0 and 1.
    """
    _check_level(level)
    share = count / total
    z = NormalDist().inv_cdf((1 + level) / 2)
    center = (share + z * z / (2 * total)) / (1 + z * z / total)
    spread = sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    half = z / (1 + z * z / total) * spread
    return max(0.0, center - half), min(1.0, center + half)


def share_interval(count: int, total: int) -> tuple[float, float]:
    """The exact interval of a share `count / total` (Clopper and Pearson 1934), within 0 to 1.

    It holds the true share at least 95 % of the time, whatever the share and the total; of
    nothing at all it is 0 to 1.

    >>> [round(bound, 4) for bound in share_interval(0, 10)]
    [0.0, 0.3085]
    """
    tail = (1 - LEVEL) / 2
    return _lower(count, total, tail), 1 - _lower(total - count, total, tail)


def sign_test(wins: int, losses: int) -> float:
    """How likely a fair coin is at least as lopsided, in either direction (exact, two-sided).

    >>> round(sign_test(6, 0), 5)
    0.03125
    """
    return min(1.0, 2 * _at_least(max(wins, losses), wins + losses, 0.5))


def kappa(
    choices: Sequence[str], others: Sequence[str]
) -> tuple[float, tuple[float, float]] | None:
    """Cohen's kappa (1960) of two raters' choices and its 95 % interval.

    The interval is the usual approximation by a normal distribution. None where kappa has no value:
    no choices, or both raters always chose the same.
    """
    n = len(choices)
    if not n:
        return None
    agreed = sum(a == b for a, b in zip(choices, others, strict=True)) / n
    counts, other_counts = Counter(choices), Counter(others)
    chance = sum(counts[choice] * other_counts[choice] for choice in counts) / n**2
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
    for _ in range(50):  # bisection, to 15 digits
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


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise OptionError(f"`level` is {level}; give a number between 0 and 1, such as 0.95")
