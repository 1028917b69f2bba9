"""One batch of prompts answered in all ways, in turn: times, memory, FLOPs, and what they save.

    round   gist  standard  instruction      every way once a round, in a random order
    round   standard  instruction  gist

A slow moment of the machine falls on all ways of a round. Times are medians over the rounds; ratios
are medians of each round's ratio. Intervals are a bootstrap over the rounds: 95 % of the medians of
as many rounds drawn anew.
"""

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from gistkit.benchmark.flops import count_flops, prefill_flops
from gistkit.benchmark.memory import peak_bytes
from gistkit.benchmark.modes import Answer, Prompts
from gistkit.benchmark.rows import GIST, INSTRUCTION, STANDARD
from gistkit.gist import Prefix

RESAMPLES = 2000
TIMES = ("prefill", "decode", "total", "make")
Samples = dict[str, dict[str, list[float]]]
"""Seconds by way and by kind of time; one value a round."""


def measure(
    prompts: Prompts,
    new: int,
    *,
    rounds: int,
    warmup: int,
    seed: int,
    between: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Measure one batch.

    Args:
        prompts: what is asked.
        new: tokens of each answer.
        rounds: how many count.
        warmup: how many run before, and do not count.
        seed: of the orders and the bootstrap.
        between: called after each round.

    Returns:
        JSON values: `ways` (by name: times, rates, memory, FLOPs), `ratios` (to standard and to
        instruction caching), `break_even` (reuses after which what was made has paid for itself)
        and `outputs` (how far answers agree).
    """
    caches = {way: prompts.make(way) for way in prompts.ways}
    samples, answers = _run(prompts, caches, new, rounds, warmup, seed, between)
    batch = len(prompts.inputs)
    return {
        "batch": batch,
        "instruction_tokens": _longest(prompts.instructions) - prompts.k,
        "input_tokens": _longest(prompts.inputs),
        "new_tokens": new,
        "num_gist_tokens": prompts.k,
        "ways": {
            way: {
                **{name: _interval(samples[way][name], seed) for name in TIMES},
                "tokens_per_second": batch * new / _median(samples[way]["total"]),
                **_kept(caches[way]),
                **_costs(prompts, caches[way]),
                "joules": answers[way].joules,
                "samples": samples[way],
            }
            for way in prompts.ways
        },
        "ratios": _ratios(samples, prompts.ways, seed),
        "break_even": _break_evens(samples, prompts.ways, seed),
        "outputs": _outputs(prompts, answers),
    }


def _run(
    prompts: Prompts,
    caches: Mapping[str, Prefix | None],
    new: int,
    rounds: int,
    warmup: int,
    seed: int,
    between: Callable[[], None],
) -> tuple[Samples, dict[str, Answer]]:
    order, names = random.Random(seed), list(prompts.ways)
    samples: Samples = {way: {name: [] for name in TIMES} for way in names}
    answers: dict[str, Answer] = {}
    collecting = gc.isenabled()
    gc.disable()  # a collection would fall on whichever way happens to run
    gc.collect()
    gc.freeze()  # so that collecting between rounds is quick
    try:
        for number in range(warmup + rounds):
            gc.collect()
            order.shuffle(names)
            for way in names:
                answers[way] = answer = prompts.answer(caches[way], new)
                made = _seconds_to_make(prompts, way)
                if number >= warmup:
                    times = (answer.prefill, answer.decode, answer.total, made)
                    for name, value in zip(TIMES, times, strict=True):
                        samples[way][name].append(value)
            between()
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
    return samples, answers


def _seconds_to_make(prompts: Prompts, way: str) -> float:
    if way == STANDARD:
        return 0.0
    on_gpu = prompts.model.device.type == "cuda"
    start = time.perf_counter()
    prompts.make(way)
    if on_gpu:
        torch.cuda.synchronize(prompts.model.device)
    return time.perf_counter() - start


def _kept(prefix: Prefix | None) -> dict[str, int]:
    """Tokens and bytes kept of each prompt; of the longest, where they differ."""
    if prefix is None:
        return {"kept_tokens": 0, "kept_bytes": 0}
    return {"kept_tokens": prefix.num_tokens, "kept_bytes": prefix.num_bytes // len(prefix)}


def _costs(prompts: Prompts, prefix: Prefix | None) -> dict[str, Any]:
    batch, cached = len(prompts.inputs), 0 if prefix is None else prefix.num_tokens
    rows = prompts.inputs
    if prefix is None:
        rows = [p + x for p, x in zip(prompts.instructions, prompts.inputs, strict=True)]
    counted = count_flops(lambda: prompts.read(prefix))
    return {
        "peak_bytes": peak_bytes(lambda: prompts.read(prefix), prompts.model.device),
        "flops": counted,
        "flops_by_formula": prefill_flops(prompts.model.hf_model, batch, _longest(rows), cached),
    }


def _ratios(samples: Samples, ways: Sequence[str], seed: int) -> dict[str, Any]:
    """Times of each way as shares of another's, round by round."""
    return {
        f"{way} / {base}": {
            name: _interval(
                [a / b for a, b in zip(samples[way][name], samples[base][name], strict=True)], seed
            )
            for name in ("prefill", "decode", "total")
        }
        for way, base in _pairs(ways)
    }


def _pairs(ways: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [(INSTRUCTION, STANDARD), (GIST, STANDARD), (GIST, INSTRUCTION)]
    return [(way, base) for way, base in pairs if way in ways and base in ways]


def _break_evens(samples: Samples, ways: Sequence[str], seed: int) -> dict[str, Any]:
    """Answers after which making a cache has paid for itself; null where it never does.

    By the time to the first token, which is what a cache shortens for sure. Against instruction
    caching only what a gist costs more to make has to be earned: 0 where it costs no more, and
    null where reading on top of it is not quicker.
    """
    import numpy

    draw = numpy.random.default_rng(seed)
    rounds = len(samples[STANDARD]["prefill"])
    rows = draw.integers(rounds, size=(RESAMPLES, rounds))
    found: dict[str, Any] = {}
    for way, base in _pairs(ways):
        make, first, other, made = (
            numpy.array(samples[one][name])
            for one, name in ((way, "make"), (way, "prefill"), (base, "prefill"), (base, "make"))
        )

        def reuses(pick: Any, cost: Any = make - made, saved: Any = other - first) -> Any:
            costs, savings = (numpy.median(values[pick], axis=-1) for values in (cost, saved))
            with numpy.errstate(divide="ignore", invalid="ignore"):
                needed = numpy.maximum(costs, 0) / savings
            return numpy.where(savings > 0, needed, numpy.inf)

        # order statistics: between two infinities there is nothing to interpolate
        low, high = numpy.quantile(reuses(rows), [0.025, 0.975], method="nearest")
        found[f"{way} / {base}"] = {
            "reuses": _finite(reuses(numpy.arange(rounds))),
            "low": _finite(low),
            "high": _finite(high),
        }
    return found


def _outputs(prompts: Prompts, answers: Mapping[str, Answer]) -> dict[str, float]:
    """Shares of greedy tokens that are equal: to the masked full pass, and to no cache."""
    found = {
        f"{way} = full pass": _agreement(answers[way].ids, prompts.expected(way, answers[way].ids))
        for way in prompts.ways
    }
    others = [way for way in prompts.ways if way != STANDARD]
    return found | {
        f"{way} = {STANDARD}": _agreement(answers[way].ids, answers[STANDARD].ids) for way in others
    }


def _agreement(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours == theirs).float().mean())


def _interval(values: Sequence[float], seed: int) -> dict[str, float]:
    import numpy

    found = numpy.array(values)
    rows = numpy.random.default_rng(seed).integers(len(found), size=(RESAMPLES, len(found)))
    low, high = numpy.quantile(numpy.median(found[rows], axis=1), [0.025, 0.975])
    return {"median": _median(values), "low": float(low), "high": float(high)}


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _finite(value: Any) -> float | None:
    return float(value) if float(value) < float("inf") else None


def _longest(rows: Sequence[Sequence[int]]) -> int:
    return max(map(len, rows))
