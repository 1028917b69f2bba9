"""How two things are compared on a noisy machine: in turn, in one process, by paired ratios.

    round 1   B A C        every side once a round, in a random order
    round 2   A C B
    ratio A/B = median over the rounds of (A's time / B's time in the same round)

A slow moment of the machine falls on all sides of a round, and drops out of their ratio. The spread
is a bootstrap over the rounds: draw as many rounds again with replacement, take the median ratio,
repeat; 95 % of those medians lie between `low` and `high`.

Knows nothing about models; only how to wait for a GPU.
"""

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds by the wall clock, and seconds of this process's CPU time."""

    wall: float
    cpu: float


Run = Callable[[], Timing]
"""One measured execution of one side."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and its bootstrap 95 % interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def verdict(self, most: float) -> str:
        """ "met" or "missed" where the whole interval is on one side of `most`, else "open"."""
        return "met" if self.high <= most else "missed" if self.low > most else "open"


def timed(work: Callable[[], object], *, device: str = "cpu") -> Run:
    """Measure all of `work`; on a GPU, until what it has queued is done."""

    def run() -> Timing:
        wait(device)
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        wait(device)
        return Timing(time.perf_counter() - wall, time.process_time() - cpu)

    return run


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def interleave(
    sides: Mapping[str, Run], *, rounds: int, warmup: int, seed: int
) -> dict[str, list[Timing]]:
    """Run every side once a round, in an order drawn anew each round.

    Args:
        sides: what to run, by name.
        rounds: how many rounds count.
        warmup: how many rounds run before, and do not count.
        seed: of the orders.

    Returns:
        For each side its timings; those at one index are of one round.
    """
    order = random.Random(seed)
    names = list(sides)
    samples: dict[str, list[Timing]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()  # a collection would fall on whichever side happens to run
    gc.collect()
    gc.freeze()  # so that collecting between rounds is quick
    try:
        for number in range(warmup + rounds):
            gc.collect()
            order.shuffle(names)
            for name in names:
                timing = sides[name]()
                if number >= warmup:
                    samples[name].append(timing)
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
    return samples


def median_ratio(
    top: Sequence[float], bottom: Sequence[float], *, seed: int, resamples: int = RESAMPLES
) -> Interval:
    """Median of the paired ratios top[r] / bottom[r], with its bootstrap 95 % interval."""
    ratios = [a / b for a, b in zip(top, bottom, strict=True)]
    draw = random.Random(seed)
    medians = sorted(
        statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(resamples)
    )
    return Interval(statistics.median(ratios), quantile(medians, 0.025), quantile(medians, 0.975))


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the ordered values lie, by linear interpolation."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
