"""Floating-point operations of one pass: counted by torch, and by hand from the model's shape.

A multiplication and an addition are two operations; only matrix products count, as everywhere. The
formula is the published architecture's, so that a cache which computes too much shows.

Shapes: B batch, Q tokens read, C tokens cached, H heads, D head size.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from gistkit.models.families import FAMILIES


def count_flops(work: Callable[[], object]) -> int:
    """Operations that `work` executes, by torch's counter."""
    aten: Any = torch.ops.aten
    # torch's table has the attention kernels of GPUs only
    kernels = {aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        work()
    return int(counter.get_total_flops())


def prefill_flops(model: PreTrainedModel, batch: int, new: int, cached: int) -> int | None:
    """Operations to read `new` tokens on top of `cached` ones and say what comes next.

    An encoder reads the rows of a gist anew (and then overwrites them): `cached` counts as `new`.

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
