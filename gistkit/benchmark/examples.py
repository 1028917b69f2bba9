"""The published protocol: one forward pass for each example, with a cache and without.

Caches are made beforehand and not timed; the ways come in a random order for each example. Two
differences to the published script: one pass that nobody counts comes first, and where that ran
under a profiler only, here it runs once more without, for its plain time (`prefill`).
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from gistkit.benchmark.flops import count_flops
from gistkit.benchmark.memory import peak_bytes
from gistkit.benchmark.modes import Prompts
from gistkit.benchmark.rows import GIST, INSTRUCTION, STANDARD
from gistkit.errors import MissingExtraError, OptionError
from gistkit.gist import Prefix
from gistkit.model import GistModel
from gistkit.prompts import Example

PROFILERS = ("pytorch", "deepspeed")


def run_examples(
    model: GistModel,
    examples: Sequence[Example],
    *,
    k: int | None = None,
    ways: Sequence[str] = (STANDARD, GIST),
    profiler: str = "pytorch",
    seed: int = 0,
) -> Iterator[list[dict[str, Any]]]:
    """Rows of a benchmark file, those of an example at a time.

    Args:
        k: gist tokens; default: the model's.
        ways: which to run, of standard, instruction and gist.
        profiler: "pytorch" for `cpu_time` and `cuda_time` in microseconds and `flops` as torch
            counts them; "deepspeed" for its flops, macs, params and duration.
        seed: of the orders.

    Raises:
        OptionError: an unknown profiler, or an encoder-decoder is to cache instructions.
        MissingExtraError: deepspeed is not installed.
        PromptError: an example cannot be used.
    """
    if profiler not in PROFILERS:
        raise OptionError(f"unknown profiler {profiler!r}; choose one of {', '.join(PROFILERS)}")
    if INSTRUCTION in ways and not model.adapter.can_cache_prompts:
        raise OptionError("an encoder-decoder cannot cache instructions; benchmark its gists")
    number_of_gists = model.check_k(k, allow_untrained=True)
    profile = _by_pytorch if profiler == "pytorch" else _by_deepspeed
    order = random.Random(seed)
    for number, example in enumerate(examples):
        prompts = Prompts(
            model,
            [model.encoder.instruction(example.instruction, number_of_gists)],
            [model.encoder.input(example.input)],
            number_of_gists,
        )
        if number == 0:
            for way in ways:
                prompts.read(prompts.make(way))
        mixed = order.sample(list(ways), len(ways))
        measured = {way: _measure(prompts, way, profile) for way in mixed}
        yield [
            {
                "id": number,
                **_lengths(prompts, INSTRUCTION if way == INSTRUCTION else GIST),
                "first_run": mixed[0],
                "model": way,
                **measured[way],
            }
            for way in ways
        ]


def as_published(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with cached instructions under their published name, which is "gist".

    What was kept then stands in both rows of an example, as published.
    """
    spans = {row["id"]: row for row in rows if row["model"] != STANDARD}
    columns = ("effective_num_gist_tokens", "gist_index")

    def named(way: str) -> str:
        return GIST if way == INSTRUCTION else way

    return [
        {
            **row,
            **{name: spans[row["id"]][name] for name in columns},
            "model": named(row["model"]),
            "first_run": named(row["first_run"]),
        }
        for row in rows
    ]


def _lengths(prompts: Prompts, kept: str) -> dict[str, int]:
    """The published columns; an instruction cache counts as a span that begins with the prompt."""
    whole, new = len(prompts.instructions[0]), len(prompts.inputs[0])
    span = whole if kept == INSTRUCTION else prompts.k
    return {
        "num_prompt_tokens": whole + new,
        "num_input_tokens": new,
        "effective_num_gist_tokens": span,
        "gist_index": whole - span,
    }


Profile = Callable[[GistModel, Callable[[], object]], dict[str, Any]]


def _measure(prompts: Prompts, way: str, profile: Profile) -> dict[str, Any]:
    prefix: Prefix | None = prompts.make(way)

    def work() -> object:
        return prompts.read(prefix)

    found = profile(prompts.model, work)
    wait(prompts.model.device)
    start = time.perf_counter()
    work()
    wait(prompts.model.device)
    return {
        **found,
        "prefill": time.perf_counter() - start,
        "peak_bytes": peak_bytes(work, prompts.model.device),
        "kept_bytes": 0 if prefix is None else prefix.num_bytes,
    }


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _by_pytorch(model: GistModel, work: Callable[[], object]) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if model.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    wait(model.device)
    with profile(activities=activities) as profiler:
        work()
        wait(model.device)
    events = profiler.key_averages()
    return {
        "cpu_time": round(sum(event.self_cpu_time_total for event in events)),
        "cuda_time": round(sum(event.self_device_time_total for event in events)),
        "flops": count_flops(work),
    }


def _by_deepspeed(model: GistModel, work: Callable[[], object]) -> dict[str, Any]:
    try:
        from deepspeed.profiling.flops_profiler import FlopsProfiler
    except ImportError as error:
        raise MissingExtraError("deepspeed", "deepspeed") from error
    profiler = FlopsProfiler(model.hf_model)
    profiler.start_profile()
    try:
        work()
        return {
            "flops": profiler.get_total_flops(),
            "macs": profiler.get_total_macs(),
            "params": profiler.get_total_params(),
            "duration": profiler.get_total_duration(),
        }
    finally:
        profiler.end_profile()
