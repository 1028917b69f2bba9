"""Keys and values read out of vLLM's paged cache.

A backend packs its cache as the processor likes it, and vLLM has a call that writes a cache but
none that reads one. So `CacheLayout` has it write numbers that say where they come from into a
scratch block, and looks where they went.

Shapes: T tokens of a block, H heads, D head size, M numbers of a block (at least 2 · T · H · D), n
tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gistkit.errors import UnsupportedModelError

BASE = 128
"""Digits below it are exact in every floating type, bfloat16 too."""

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
