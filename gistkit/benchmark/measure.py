"""One batch of prompts answered in all modes, in turn: times, memory, FLOPs, and what they save.

Rounds are those of `gistkit.timing`: every mode once a round, in a random order. Times are medians
over the rounds, ratios are medians of each round's ratio, both with bootstrap 95 % intervals.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any

import torch

from gistkit.benchmark.costs import count_flops, peak_bytes, prefill_flops
from gistkit.benchmark.files import GIST, INSTRUCTION, STANDARD
from gistkit.benchmark.prompts import Prompts, TimedAnswer
from gistkit.gist import Prefix
from gistkit.stats import bootstrap, median_interval, median_ratio
from gistkit.timing import interleave, synchronize

TIMES = ("prefill", "decode", "total", "make")
RESAMPLES = 2000
Samples = Mapping[str, Mapping[str, Sequence[float]]]
"""Seconds by mode and by kind of time; one value a round."""


def measure(
    prompts: Prompts,
    new: int,
    *,
    rounds: int,
    warmup: int,
    seed: int,
    after_round: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Measure one batch; `new` is the number of tokens of each answer, `rounds` those that count.

    Returns:
        JSON values: `modes` (by name: times, rates, memory, FLOPs), `ratios` (to standard and to
        instruction caching), `break_even` (reuses after which what was made has paid for itself)
        and `outputs` (how far answers agree).
    """
    prefixes = {mode: prompts.prepare(mode) for mode in prompts.modes}
    answers: dict[str, TimedAnswer] = {}

    def run(mode: str) -> tuple[float, ...]:
        answers[mode] = found = prompts.answer(prefixes[mode], new)
        return found.prefill, found.decode, found.total, _seconds_to_prepare(prompts, mode)

    rounds_of = interleave(
        {mode: partial(run, mode) for mode in prompts.modes},
        rounds=rounds,
        warmup=warmup,
        seed=seed,
        after_round=after_round,
    )
    samples = {
        mode: dict(zip(TIMES, map(list, zip(*found, strict=True)), strict=True))
        for mode, found in rounds_of.items()
    }
    return {
        "batch": len(prompts),
        "instruction_tokens": _longest(prompts.instructions) - prompts.k,
        "input_tokens": _longest(prompts.inputs),
        "new_tokens": new,
        "num_gist_tokens": prompts.k,
        "modes": {
            mode: {
                **{name: asdict(median_interval(samples[mode][name], seed=seed)) for name in TIMES},
                "tokens_per_second": len(prompts) * new / median(samples[mode]["total"]),
                **_costs(prompts, prefixes[mode]),
                "joules": answers[mode].joules,
                "samples": samples[mode],
            }
            for mode in prompts.modes
        },
        "ratios": {
            f"{mode} / {base}": {
                name: asdict(median_ratio(samples[mode][name], samples[base][name], seed=seed))
                for name in ("prefill", "decode", "total")
            }
            for mode, base in _pairs(prompts.modes)
        },
        "break_even": break_evens(samples, prompts.modes, seed),
        "outputs": _agreement(prompts, {mode: answers[mode].ids for mode in prompts.modes}),
    }


def _seconds_to_prepare(prompts: Prompts, mode: str) -> float:
    if mode == STANDARD:
        return 0.0
    start = time.perf_counter()
    prompts.prepare(mode)
    synchronize(prompts.model.device)
    return time.perf_counter() - start


def _costs(prompts: Prompts, prefix: Prefix | None) -> dict[str, Any]:
    """Memory and FLOPs; tokens and bytes are those kept of the longest prompt."""
    cached = 0 if prefix is None else prefix.num_tokens
    new = _longest(prompts.rows if prefix is None else prompts.inputs)
    model = prompts.model
    return {
        "kept_tokens": cached,
        "kept_bytes": 0 if prefix is None else prefix.num_bytes // len(prefix),
        "peak_bytes": peak_bytes(lambda: prompts.read(prefix), model.device),
        "flops": count_flops(lambda: prompts.read(prefix)),
        "flops_by_formula": prefill_flops(model.hf_model, len(prompts), new, cached),
    }


def _pairs(modes: Sequence[str]) -> list[tuple[str, str]]:
    pairs = [(INSTRUCTION, STANDARD), (GIST, STANDARD), (GIST, INSTRUCTION)]
    return [(mode, base) for mode, base in pairs if mode in modes and base in modes]


def break_evens(samples: Samples, modes: Sequence[str], seed: int) -> dict[str, Any]:
    """Answers after which making a cache has paid for itself; None where it never does.

    Savings are counted in time to the first token. Against instruction caching only the additional
    cost of making a gist counts: 0 where there is none, and None where reading on top of the gist
    is not faster.
    """
    import numpy

    found: dict[str, Any] = {}
    for mode, base in _pairs(modes):
        cost, saved = (
            numpy.array(samples[a][name]) - numpy.array(samples[b][name])
            for a, b, name in ((mode, base, "make"), (base, mode, "prefill"))
        )

        def reuses(rows: Any, cost: Any = cost, saved: Any = saved) -> Any:
            costs, savings = (numpy.median(values[rows], axis=-1) for values in (cost, saved))
            with numpy.errstate(divide="ignore", invalid="ignore"):
                needed = numpy.maximum(costs, 0) / savings
            return numpy.where(savings > 0, needed, numpy.inf)

        # order statistics: between two infinities there is nothing to interpolate
        ends = bootstrap(reuses, len(cost), seed=seed, samples=RESAMPLES, method="nearest")
        values = (reuses(numpy.arange(len(cost))), *ends)
        found[f"{mode} / {base}"] = {
            name: float(value) if value < float("inf") else None
            for name, value in zip(("reuses", "low", "high"), values, strict=True)
        }
    return found


def _agreement(prompts: Prompts, answers: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Shares of greedy tokens that are equal: to the masked full pass, and to no cache."""

    def share(found: torch.Tensor, expected: torch.Tensor) -> float:
        return float((found == expected).float().mean())

    return {
        f"{mode} = full pass": share(ids, prompts.full_pass(mode, ids).argmax(-1))
        for mode, ids in answers.items()
    } | {
        f"{mode} = {STANDARD}": share(ids, answers[STANDARD])
        for mode, ids in answers.items()
        if mode != STANDARD
    }


def _longest(rows: Sequence[Sequence[int]]) -> int:
    return max(map(len, rows))
