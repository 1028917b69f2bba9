"""Timing on a noisy machine: in turn, in one process, compared by paired ratios.

    round 1   B A C        every side once a round, in a random order
    round 2   A C B
    ratio A/B = median over the rounds of (A's time / B's time in the same round)

A slow moment of the machine falls on all sides of a round and drops out of their ratio
(`stats.median_ratio`). Knows nothing about models; only how to wait for a device.
"""

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch

Sample = TypeVar("Sample")


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds by the wall clock, and CPU seconds of this process."""

    wall: float
    cpu: float


def synchronize(device: torch.device | str) -> None:
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()


def timed(
    work: Callable[[], object], *, device: torch.device | str = "cpu"
) -> Callable[[], Timing]:
    """A side for `interleave` that measures all of `work`, until the device has finished."""

    def run() -> Timing:
        synchronize(device)
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        synchronize(device)
        return Timing(time.perf_counter() - wall, time.process_time() - cpu)

    return run


def interleave(
    sides: Mapping[str, Callable[[], Sample]],
    *,
    rounds: int,
    warmup: int,
    seed: int,
    after_round: Callable[[], object] = lambda: None,
) -> dict[str, list[Sample]]:
    """Run every side once a round, in a random order; `warmup` rounds run first and are dropped.

    `after_round` is called after those, too. Samples at one index are of one round.
    """
    order = random.Random(seed)
    names = list(sides)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()  # a collection would fall on whichever side happens to run
    gc.collect()
    gc.freeze()  # so that collecting between rounds is quick
    try:
        for number in range(warmup + rounds):
            gc.collect()
            order.shuffle(names)
            for name in names:
                sample = sides[name]()
                if number >= warmup:
                    samples[name].append(sample)
            after_round()
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
    return samples
