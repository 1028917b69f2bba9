"""The activations of a model with the gist cache and without, place by place.

    without   full pass over  instruction GIST*k input output   under the gist mask
    with      one pass over                      input output   on top of the cached gist

A trace holds hidden states, keys and values of every layer at the gist, input and output tokens of
each prompt, in the order in which they are computed. Keys are rotated by their positions, so the
full pass is run at the positions at which the cache is read: the gist at 0 .. k-1.

Shapes: B batch, P instruction, K gist tokens, L input, T output, F features of a place.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from gistkit.benchmark.prompts import Prompts
from gistkit.gist import Prefix
from gistkit.models.decoder import DecoderAdapter, count_positions
from gistkit.models.kv_batch import CACHE


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is computed: `part` is "decoder" or "encoder", layers count from 0."""

    part: str
    layer: int
    what: str

    def __str__(self) -> str:
        return f"{self.part} layer {self.layer}, {self.what}"


Outputs = Sequence[list[int]]
"""Ids of the answers that the cache gave."""

Trace = dict[Place, list[dict[str, Tensor]]]
"""For each place and prompt, tensors [tokens, F] by segment: gist, input, output."""


def with_cache(prompts: Prompts, outputs: Outputs, gist: Prefix) -> Trace:
    if isinstance(prompts.model.adapter, DecoderAdapter):
        return _decoder_read(prompts, outputs, gist)
    return _encoder_decoder_read(prompts, outputs, gist)


def without_cache(prompts: Prompts, outputs: Outputs) -> Trace:
    if isinstance(prompts.model.adapter, DecoderAdapter):
        return _decoder_full(prompts, outputs)
    return _encoder_decoder_full(prompts, outputs)


def _decoder_full(prompts: Prompts, outputs: Outputs) -> Trace:
    model = prompts.model
    ids, padding = model.pad([row + y for row, y in zip(prompts.rows, outputs, strict=True)])
    before = torch.tensor([len(p) - prompts.k for p in prompts.instructions], device=ids.device)
    positions = count_positions(padding) - before[:, None]
    cache = DynamicCache()
    cached: dict[str, Any] = {CACHE: cache}
    output = model.adapter.forward(
        ids,
        padding,
        gist_id=model.gist_id,
        condition="gist",
        model=lambda **given: model.hf_model(**{**given, "position_ids": positions}),  # type: ignore[arg-type]
        output_hidden_states=True,
        **cached,
    )
    width = ids.shape[1]
    starts = [width - len(x) - len(y) for x, y in zip(prompts.inputs, outputs, strict=True)]
    gist_starts = [start - prompts.k for start in starts]
    return _decoder_trace(output, cache, prompts, outputs, width, gist_starts, starts)


def _decoder_read(prompts: Prompts, outputs: Outputs, gist: Prefix) -> Trace:
    model = prompts.model
    rows = [x + y for x, y in zip(prompts.inputs, outputs, strict=True)]
    ids, padding = model.pad(rows)
    output = model.adapter.read(
        ids, padding, gist, gist_id=model.gist_id, use_cache=True, output_hidden_states=True
    )
    width = prompts.k + ids.shape[1]
    starts = [width - len(row) for row in rows]
    cache = output[CACHE]
    return _decoder_trace(output, cache, prompts, outputs, width, [0] * len(rows), starts)


def _decoder_trace(
    output: Any,
    cache: DynamicCache,
    prompts: Prompts,
    outputs: Outputs,
    width: int,
    gist_starts: Sequence[int],
    starts: Sequence[int],
) -> Trace:
    """Starts count columns of `width`; tensors of fewer lack the first ones.

    There are no hidden states of a cached gist, and sliding windows drop the first columns.
    """
    trace: Trace = {}
    *hidden, last = output.hidden_states

    def add(layer: int, what: str, tensor: Tensor) -> None:
        missing = width - tensor.shape[1]
        trace[Place("decoder", layer, what)] = [
            {
                "gist": _cut(tensor[row], gist_starts[row] - missing, prompts.k),
                "input": _cut(tensor[row], starts[row] - missing, len(x)),
                "output": _cut(tensor[row], starts[row] + len(x) - missing, len(y)),
            }
            for row, (x, y) in enumerate(zip(prompts.inputs, outputs, strict=True))
        ]

    for layer, (entering, (keys, values, *_)) in enumerate(zip(hidden, cache, strict=True)):
        add(layer, "hidden states", entering)
        add(layer, "keys", keys.transpose(1, 2).flatten(2))
        add(layer, "values", values.transpose(1, 2).flatten(2))
    add(len(hidden), "final hidden states", last)
    add(len(hidden), "logits", output.logits)
    return trace


def _encoder_decoder_full(prompts: Prompts, outputs: Outputs) -> Trace:
    model = prompts.model
    ids, padding = model.pad(prompts.rows)
    starts = [ids.shape[1] - len(x) for x in prompts.inputs]
    with _recording(model.hf_model) as recorded:
        output = model.adapter.forward(
            ids,
            padding,
            gist_id=model.gist_id,
            condition="gist",
            decoder_input_ids=_shifted(prompts, outputs),
            use_cache=False,
        )
    gist_starts = [start - prompts.k for start in starts]
    return _encoder_decoder_trace(recorded, output, prompts, outputs, gist_starts, starts)


def _encoder_decoder_read(prompts: Prompts, outputs: Outputs, gist: Prefix) -> Trace:
    model = prompts.model
    ids, padding = model.pad(prompts.inputs)
    with _recording(model.hf_model) as recorded:
        output = model.adapter.read(
            ids,
            padding,
            gist,
            gist_id=model.gist_id,
            decoder_input_ids=_shifted(prompts, outputs),
            use_cache=False,
        )
    count = len(prompts)
    return _encoder_decoder_trace(
        recorded, output, prompts, outputs, [0] * count, [prompts.k] * count
    )


def _encoder_decoder_trace(
    recorded: dict[Place, Tensor],
    output: Any,
    prompts: Prompts,
    outputs: Outputs,
    gist_starts: Sequence[int],
    starts: Sequence[int],
) -> Trace:
    layers = 1 + max(place.layer for place in recorded if place.part == "decoder")
    recorded[Place("decoder", layers, "logits")] = output.logits
    trace: Trace = {}
    for place, tensor in recorded.items():
        if place.part == "decoder" and not place.what.startswith("cross"):
            trace[place] = [{"output": tensor[row, : len(y)]} for row, y in enumerate(outputs)]
        else:
            trace[place] = [
                {
                    "gist": _cut(tensor[row], gist_starts[row], prompts.k),
                    "input": _cut(tensor[row], starts[row], len(x)),
                }
                for row, x in enumerate(prompts.inputs)
            ]
    return trace


def _shifted(prompts: Prompts, outputs: Outputs) -> Tensor:
    start = int(prompts.model.hf_model.config.decoder_start_token_id)
    return torch.tensor([[start, *y[:-1]] for y in outputs], device=prompts.model.device)


def _cut(tensor: Tensor, start: int, length: int) -> Tensor:
    """`length` rows from `start`; rows before the tensor begins are missing."""
    return tensor[max(0, start) : max(0, start + length)]


@contextmanager
def _recording(model: Any) -> Iterator[dict[Place, Tensor]]:
    """Record what enters each block, and its keys and values, in the order of computation."""
    recorded: dict[Place, Tensor] = {}

    def entering(place: Place) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
            recorded[place] = args[0] if args else given["hidden_states"]

        return hook

    def leaving(place: Place) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            recorded[place] = output

        return hook

    with ExitStack() as hooks:
        for part, stack in (("encoder", model.get_encoder()), ("decoder", model.get_decoder())):
            for layer, block in enumerate(stack.block):
                place = Place(part, layer, "hidden states")
                hook = block.layer[0].register_forward_pre_hook(entering(place), with_kwargs=True)
                hooks.callback(hook.remove)
                attentions = {"": block.layer[0].SelfAttention}
                if part == "decoder":
                    attentions["cross-attention "] = block.layer[1].EncDecAttention
                for prefix, attention in attentions.items():
                    for name, module in (("keys", attention.k), ("values", attention.v)):
                        place = Place(part, layer, prefix + name)
                        hooks.callback(module.register_forward_hook(leaving(place)).remove)
        yield recorded
