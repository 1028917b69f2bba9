"""Keys and values read out of vLLM's paged cache, and keys moved to other positions.

A backend packs its cache as the processor likes it, and vLLM has a call that writes a cache but
none that reads one. So `CacheLayout` has it write numbers that say where they come from into a
scratch block, and looks where they went.

Shapes: T tokens of a block, H heads, D head size, M numbers of a block (at least 2 · T · H · D), n
tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from gistkit.errors import UnsupportedModelError

BASE = 128
"""Digits below it are exact in every floating type, bfloat16 too."""

TESTED_MODELS = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose keys were compared with `GistModel.compress` (tests/integrations)."""

FIXED_ROPES = ("default", "linear", "llama3")
"""Kinds of rotary embedding whose frequencies do not change with the length."""

Write = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Writes keys [n, H, D] and values [n, H, D] into a cache at slots [n]."""


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """Where a block keeps its numbers.

    Attributes:
        keys, values: [T, H, D] offset of each number in the flattened block, in 0 .. M-1.
    """

    keys: Tensor
    values: Tensor

    @classmethod
    def probe(
        cls, write: Write, cache: Tensor, *, heads: int, size: int, block: int
    ) -> "CacheLayout":
        """Fill one block of a new cache shaped like `cache` [blocks, ...], and look.

        Raises:
            UnsupportedModelError: a block is not whole in `cache[block]`, or holds other numbers.
        """
        scratch = torch.zeros((1, *cache.shape[1:]), dtype=cache.dtype, device=cache.device)
        count = block * heads * size
        slots = torch.arange(block, dtype=torch.int64, device=cache.device)
        numbers = torch.arange(1, 2 * count + 1, device=cache.device)
        found = torch.zeros(scratch.numel(), dtype=torch.int64, device=cache.device)
        scale = 1
        while scale <= 2 * count:
            digits = (numbers // scale % BASE).to(cache.dtype).view(2, block, heads, size)
            write(digits[0], digits[1], scratch, slots)
            found += scratch.flatten().long() * scale
            scale *= BASE
        offsets = torch.zeros(2 * count + 1, dtype=torch.int64, device=cache.device)
        known = (found > 0) & (found <= 2 * count)
        offsets[found[known]] = known.nonzero().flatten()
        if int(known.sum()) != 2 * count or not torch.equal(found[offsets[1:]], numbers):
            raise UnsupportedModelError(
                "this attention backend's cache cannot be read; compress with gistkit instead"
            )
        keys, values = offsets[1:].view(2, block, heads, size)
        return cls(keys, values)

    def read(self, cache: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [n, H, D] of the slots [n]."""
        block = len(self.keys)
        blocks, inside = slots // block, slots % block
        flat = cache[blocks].flatten(1)  # [n, M]

        def pick(offsets: Tensor) -> Tensor:
            return flat.gather(1, offsets[inside].flatten(1)).view(len(slots), *offsets.shape[1:])

        return pick(self.keys), pick(self.values)


def rope_frequencies(config: Any) -> Tensor:
    """Radians per position [D / 2], float32, of a model with this transformers config.

    Raises:
        UnsupportedModelError: the kind of model or of rotary embedding is not tested.
    """
    rope = dict(config.rope_parameters or {})
    kind = rope.get("rope_type", "default")
    if config.model_type not in TESTED_MODELS or kind not in FIXED_ROPES:
        raise UnsupportedModelError(
            f"vLLM can compress with {', '.join(TESTED_MODELS)} and rotary embeddings that do not "
            f"depend on the length, not with {config.model_type} and {kind}"
        )
    if kind == "default":
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        steps = torch.arange(0, size, 2, dtype=torch.int64).float() / size
        plain: Tensor = 1.0 / (rope["rope_theta"] ** steps)
        return plain
    found: Tensor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))[0]
    return found.float()


def rotate_keys(keys: Tensor, sources: Tensor, targets: Tensor, frequencies: Tensor) -> Tensor:
    """Keys [n, H, D] moved from positions `sources` [n] to `targets` [n], in their own precision.

    The halves of D are paired, as in Llama. Angles are those that the engine rounds to float32, and
    their differences are taken in float64, so that only the key's own rounding is left.
    """

    def angles(positions: Tensor) -> Tensor:
        return (positions.float()[:, None] * frequencies).double()

    turn = (angles(targets) - angles(sources))[:, None, :].to(keys.device)  # [n, 1, D / 2]
    cos, sin = turn.cos().float(), turn.sin().float()
    first, second = keys.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(
        keys.dtype
    )
