"""Where an attention backend keeps a token's numbers, found out by writing numbered ones.

Caches are packed as the processor likes it; vLLM has a call that writes them and none that reads.
So a block of a scratch cache is filled with numbers that say where they come from.

Shapes: T tokens of a block, H heads, D head size, M numbers of a block (at least 2 · T · H · D).
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
class Layout:
    """Places in a flattened block.

    Attributes:
        keys, values: [T, H, D] place of each number, in 0 .. M-1.
    """

    keys: Tensor
    values: Tensor

    @classmethod
    def learn(cls, write: Write, cache: Tensor, *, heads: int, size: int, block: int) -> "Layout":
        """Fill one block of a new cache shaped like `cache` [blocks, ...] and look.

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
        places = torch.zeros(2 * count + 1, dtype=torch.int64, device=cache.device)
        known = (found > 0) & (found <= 2 * count)
        places[found[known]] = known.nonzero().flatten()
        if int(known.sum()) != 2 * count or not torch.equal(found[places[1:]], numbers):
            raise UnsupportedModelError(
                "this attention backend's cache cannot be read; let gistkit compress instead"
            )
        keys, values = places[1:].view(2, block, heads, size)
        return cls(keys, values)

    def read(self, cache: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [n, H, D] of the slots [n]."""
        block = len(self.keys)
        blocks, inside = slots // block, slots % block
        flat = cache[blocks].flatten(1)  # [n, M]

        def pick(places: Tensor) -> Tensor:
            return flat.gather(1, places[inside].flatten(1)).view(len(slots), *places.shape[1:])

        return pick(self.keys), pick(self.values)
