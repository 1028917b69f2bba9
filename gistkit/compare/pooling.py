"""Mean pooling: the full prompt's cache averaged into k slots, without any training.

    entries  0 1 2 | 3 4 | 5 6          n entries in k runs, as even as they get
    slots        0     1     2          each the mean of its run

Slots are at positions 0 .. k-1. Keys are rotated by their positions, and keys of different
rotations cannot be averaged, so each key of position p is first rotated by slot - p, to its slot's
position. With k >= n nothing changes.

Shapes: H heads, n entries, D head size.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from gistkit.compare.method import Method, cached
from gistkit.errors import OptionError
from gistkit.gist import Prefix
from gistkit.model import GistModel
from gistkit.models.kv_batch import CACHE

Rotate = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class MeanPooling(Method):
    """k means of the full prompt's cache; OptionError where its keys cannot be turned."""

    name = "mean pooling"

    def prepare(self, model: GistModel, instruction: str, budget: int) -> Prefix | None:
        full = cached(model, instruction)
        return None if full is None else pooled(full, budget, rotation(model))


def pooled(full: Prefix, slots: int, rotate: Rotate) -> Prefix:
    """A prefix of one row in at most `slots` entries at positions 0, 1, ..."""
    entries = full.num_tokens
    if slots >= entries:
        return full
    slot_of = torch.arange(entries, device=full.device) * slots // entries
    shift = slot_of - torch.arange(entries, device=full.device)
    share = torch.nn.functional.one_hot(slot_of, slots).T.float()  # [k, n]
    share = share / share.sum(-1, keepdim=True)
    tensors = {
        name: (share @ (rotate(tensor, shift) if name.endswith("keys") else tensor).float()).to(
            tensor
        )
        for name, tensor in full.tensors.items()
    }
    return replace(full, tensors=tensors, lengths=(slots,))


def rotation(model: GistModel) -> Rotate:
    """The model's rotation of keys [1, H, n, D] by [n] positions, negative ones too.

    It uses the model's own functions, and is checked on a single token: moved from one position to
    another it must give the keys that the model computes there.

    Raises:
        OptionError: they do not (some layers do not rotate, or each kind has its own rotation).
    """
    base: Any = model.hf_model.base_model
    apply = vars(import_module(type(model.hf_model).__module__)).get("apply_rotary_pos_emb")
    angles = dict(base.named_children()).get("rotary_emb")

    def rotate(keys: Tensor, by: Tensor) -> Tensor:
        cos, sin = angles(keys, by[None])  # type: ignore[misc]
        scale = angles.attention_scaling  # type: ignore[union-attr]
        turned: Tensor = apply(keys, keys, cos / scale, sin / scale)[1]  # type: ignore[misc]
        return turned

    if apply is None or angles is None or not _moves_keys(model, rotate):
        raise OptionError("mean pooling cannot turn the keys of this model; leave it out")
    return rotate


@torch.no_grad()
def _moves_keys(model: GistModel, rotate: Rotate) -> bool:
    token = torch.full((1, 1), model.gist_id, device=model.device)
    keys = []
    for position in (0, 3):
        output = model.hf_model.base_model(
            input_ids=token,
            position_ids=torch.full_like(token, position),
            attention_mask=torch.ones_like(token),
            use_cache=True,
        )
        keys.append([layer_keys for layer_keys, *_ in output[CACHE]])
    by = torch.tensor([3], device=model.device)
    try:
        pairs = [(rotate(a, by).float(), b.float()) for a, b in zip(*keys, strict=True)]
    except (TypeError, ValueError, AttributeError, RuntimeError):  # other arguments or shapes
        return False
    return all(torch.allclose(a, b, rtol=1e-2, atol=1e-2 * float(b.abs().max())) for a, b in pairs)
