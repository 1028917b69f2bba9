"""The published protocol: one forward pass for each example, with a cache and without.

Caches are made in advance and not timed; the order of modes is random for each example. Two
differences to the published script: a first pass is not counted, and each pass is repeated without
the profiler, for its plain time (`prefill`).
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gistkit.benchmark.costs import count_flops, peak_bytes
from gistkit.benchmark.files import GIST, INSTRUCTION, STANDARD, Table, read_table, write_rows
from gistkit.benchmark.prompts import Prompts
from gistkit.errors import MissingExtraError, OptionError
from gistkit.model import GistModel
from gistkit.prompts import Example
from gistkit.timing import synchronize

Row = dict[str, Any]
Work = Callable[[], object]


def write_examples(
    path: Path,
    measured: Iterable[list[Row]],
    *,
    convert: Callable[[list[Row]], list[Row]] = lambda rows: rows,
    done: Callable[[int], object] = lambda examples: None,
) -> Table:
    """Write a benchmark file again after each example, so that no measurement is lost.

    `convert` is applied to an example's rows first; `done` gets the number of examples written.
    Raises SaveError, and what `measured` (of `run_examples`) raises.
    """
    rows: list[Row] = []
    for number, example_rows in enumerate(measured, 1):
        rows += convert(example_rows)
        write_rows(path, rows)
        done(number)
    return read_table(path)


def run_examples(
    model: GistModel,
    examples: Sequence[Example],
    *,
    k: int | None = None,
    modes: Sequence[str] = (STANDARD, GIST),
    profiler: str = "pytorch",
    seed: int = 0,
) -> Iterator[list[Row]]:
    """Rows of a benchmark file, those of an example at a time.

    Args:
        k: gist tokens; default: the model's.
        profiler: "pytorch" for `cpu_time` and `cuda_time` in microseconds and `flops` as torch
            counts them; "deepspeed" for its flops, macs, params and duration.
        seed: of the orders of modes.

    Raises:
        OptionError: an unknown profiler, or an encoder-decoder is to cache instructions.
        MissingExtraError: deepspeed is not installed.
        PromptError: an example cannot be used.
    """
    if profiler not in PROFILERS:
        raise OptionError(f"unknown profiler {profiler!r}; choose one of {', '.join(PROFILERS)}")
    if INSTRUCTION in modes and not model.adapter.can_cache_prompts:
        raise OptionError("an encoder-decoder cannot cache instructions; benchmark its gists")
    number_of_gists = model.check_k(k, allow_untrained=True)
    order = random.Random(seed)
    for number, example in enumerate(examples):
        prompts = Prompts(
            model,
            [model.encoder.instruction(example.instruction, number_of_gists)],
            [model.encoder.input(example.input)],
            number_of_gists,
        )
        if number == 0:
            for mode in modes:
                prompts.read(prompts.prepare(mode))
        mixed = order.sample(list(modes), len(modes))
        measured = {mode: _measure(prompts, mode, PROFILERS[profiler]) for mode in mixed}
        yield [
            {
                "id": number,
                **_lengths(prompts, mode),
                "first_run": mixed[0],
                "model": mode,
                **measured[mode],
            }
            for mode in modes
        ]


def _lengths(prompts: Prompts, mode: str) -> dict[str, int]:
    """The published columns; an instruction cache counts as a span that begins with the prompt."""
    whole, new = len(prompts.instructions[0]), len(prompts.inputs[0])
    span = whole if mode == INSTRUCTION else prompts.k
    return {
        "num_prompt_tokens": whole + new,
        "num_input_tokens": new,
        "effective_num_gist_tokens": span,
        "gist_index": whole - span,
    }


def _measure(
    prompts: Prompts, mode: str, profile: Callable[[GistModel, Work], dict[str, Any]]
) -> dict[str, Any]:
    prefix, device = prompts.prepare(mode), prompts.model.device

    def work() -> object:
        return prompts.read(prefix)

    found = profile(prompts.model, work)
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return {
        **found,
        "prefill": time.perf_counter() - start,
        "peak_bytes": peak_bytes(work, device),
        "kept_bytes": 0 if prefix is None else prefix.num_bytes,
    }


def _by_pytorch(model: GistModel, work: Work) -> dict[str, Any]:
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if model.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    synchronize(model.device)
    with profile(activities=activities) as profiler:
        work()
        synchronize(model.device)
    events = profiler.key_averages()
    return {
        "cpu_time": round(sum(event.self_cpu_time_total for event in events)),
        "cuda_time": round(sum(event.self_device_time_total for event in events)),
        "flops": count_flops(work),
    }


def _by_deepspeed(model: GistModel, work: Work) -> dict[str, Any]:
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


PROFILERS = {"pytorch": _by_pytorch, "deepspeed": _by_deepspeed}
