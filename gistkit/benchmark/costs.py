"""What a piece of work costs besides time: operations, peak memory, energy.

Floating-point operations are counted by torch, and by a formula from the model's shape, so that a
cache that computes too much shows. A multiplication and an addition are two operations; only matrix
products count.

Shapes: B batch, Q tokens read, C tokens cached, H heads, D head size.
"""

from collections.abc import Callable
from importlib import import_module
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from gistkit.models.families import FAMILIES

RAPL = Path("/sys/class/powercap")


def count_flops(work: Callable[[], object]) -> int:
    """Operations that `work` executes, by torch's counter."""
    aten: Any = torch.ops.aten
    # torch's table has the attention kernels of GPUs only
    kernels = {aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        work()
    return int(counter.get_total_flops())


def prefill_flops(model: PreTrainedModel, batch: int, new: int, cached: int) -> int | None:
    """Operations to read `new` tokens on top of `cached` ones and predict the next.

    An encoder reads the rows of a gist again (and then overwrites them): `cached` counts as `new`.

    Returns:
        For the whole batch; None for families without a formula here: experts, sliding windows
        that bind.
    """
    config: Any = model.config
    if config.model_type == "t5":
        return batch * _t5(config, new + cached)
    family = FAMILIES.get(config.model_type)
    matrices = None if family is None else family.mlp_matrices
    window = getattr(config, "sliding_window", None)
    if matrices is None or (window is not None and new + cached > window):
        return None
    width, heads = config.hidden_size, config.num_attention_heads
    size = getattr(config, "head_dim", None) or width // heads
    groups = getattr(config, "num_key_value_heads", None) or heads
    projections = 2 * width * size * (heads + groups)  # queries, output; keys, values
    weights = projections + matrices * width * config.intermediate_size
    attention = 2 * heads * size * (new + cached)  # queries by keys, weights by values
    layers = config.num_hidden_layers * new * (weights + attention)
    return int(2 * batch * (layers + width * config.vocab_size))


def _t5(config: Any, length: int) -> int:
    width, inner = config.d_model, config.num_heads * config.d_kv
    mlp = (3 if config.is_gated_act else 2) * width * config.d_ff
    encoder = config.num_layers * length * (4 * width * inner + mlp + 2 * inner * length)
    own = 4 * width * inner + 2 * inner  # one decoder token attends to itself
    cross = 2 * width * inner + length * (2 * width * inner + 2 * inner)
    decoder = config.num_decoder_layers * (own + cross + mlp)
    return int(2 * (encoder + decoder + width * config.vocab_size))


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    # shapes [B, H, Q, D] and [B, H, Q + C, D]
    return int(2 * prod(query) * key[2] + 2 * prod(query[:3]) * value[2] * value[3])


def peak_bytes(work: Callable[[], object], device: torch.device) -> int | None:
    """How far allocated memory rises while `work` runs; None on devices but CPU and CUDA."""
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
    """The device's energy counter, from an arbitrary start; None where there is none."""
    if device.type == "cuda":
        try:
            pynvml = import_module("pynvml")
            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
        except Exception:  # no library, no permission, an old driver
            return None
    if device.type != "cpu":
        return None
    try:
        packages = [path / "energy_uj" for path in RAPL.glob("intel-rapl:?")]
        return sum(int(path.read_text()) for path in packages) / 1e6 if packages else None
    except (OSError, ValueError):
        return None
