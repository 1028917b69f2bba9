"""Peak memory of a piece of work, as far as the device tells; and its energy."""

from collections.abc import Callable
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

RAPL = Path("/sys/class/powercap")


def peak_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """How far memory rises while `work` runs, above what was held before, as torch allocates it.

    None where torch does not tell: neither CPU nor CUDA.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - held
    if device.type != "cpu":
        return None
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())  # each allocates bytes, or frees (below zero)
    return max(accumulate((int(event.nbytes()) for event in events), initial=0))


def joules(device: torch.device) -> float | None:
    """The device's energy counter, since some time in the past; None where there is none."""
    if device.type == "cuda":
        try:
            pynvml = import_module("pynvml")
            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
        except Exception:  # no library, no permission, an old driver: all mean "it does not tell"
            return None
    if device.type != "cpu":
        return None
    try:
        packages = [path / "energy_uj" for path in RAPL.glob("intel-rapl:?")]
        return sum(int(path.read_text()) for path in packages) / 1e6 if packages else None
    except (OSError, ValueError):
        return None
