"""Prompts being decoded together, one token a step: what a server needs that `generate` hides.

Where transformers' `generate` begins and ends a batch as one, rows here leave as soon as they are
done, and (decoder-only) new ones join between two steps. All rows end at the same column; shorter
ones are padded on the left, as everywhere in this package:

    columns    0 1 2 3 4 5              join a row of 5           drop row 0
      row 0    . a b c d e                . a b c d e
      row 1    . . . p q r                . . . p q r               . p q r
                                          . v w x y z             v w x y z

Keys and values are one tensor for each layer with room to the right, to the left and below, so that
a step writes one column and copies nothing.

Shapes: B rows, W columns, V vocabulary, H heads, D head size.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin
from transformers.modeling_outputs import BaseModelOutputWithPast

COLUMNS = 64  # added at once, so that tensors are seldom moved

_RENAMED = "cache" in BaseModelOutputWithPast.__dataclass_fields__
CACHE = "cache" if _RENAMED else "past_key_values"
"""The name under which transformers' models take and return a cache; 5.24 renamed it."""


class KVBatch(ABC):
    """B prompts and what they have answered so far.

    Attributes:
        logits: [B, V] predictions of each row's next token.
    """

    logits: Tensor

    def __len__(self) -> int:
        return len(self.logits)

    @abstractmethod
    def step(self, tokens: Tensor) -> None:
        """Append one token [B] to each row and predict the next."""

    @abstractmethod
    def join(self, other: Self) -> None:
        """Append the rows of another batch, which must not be used afterwards."""

    @abstractmethod
    def drop(self, rows: Sequence[int]) -> list[int]:
        """Remove these rows. Row i is then what was row `order[i]`; returns `order`."""

    @abstractmethod
    def repeat(self, rows: Sequence[int]) -> None:
        """Row i becomes what was row `rows[i]`, for several answers to one prompt."""


class StaticBatch(KVBatch):
    """Rows that begin together, on the `cache` that the first pass left; none joins later."""

    def __init__(self, cache: Cache, logits: Tensor) -> None:
        self.cache, self.logits = cache, logits

    def step(self, tokens: Tensor) -> None:
        self.logits = self.forward(tokens[:, None])[:, -1]

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, 1, V] behind `tokens` [B, 1]."""

    def join(self, other: Self) -> None:
        raise AssertionError("rows of this family begin together")  # see Adapter.rows_join

    def drop(self, rows: Sequence[int]) -> list[int]:
        gone = set(rows)
        order = [row for row in range(len(self)) if row not in gone]
        if order:
            self.select(torch.tensor(order, device=self.logits.device))
        else:
            self.logits = self.logits[:0]
        return order

    def repeat(self, rows: Sequence[int]) -> None:
        self.select(torch.tensor(rows, device=self.logits.device))

    def select(self, rows: Tensor) -> None:
        """Keep these rows [R] of everything that has rows."""
        self.cache.batch_select_indices(rows)
        self.logits = self.logits[rows]


@dataclass(slots=True)
class Extent:
    """The part of every tensor that is in use: rows 0 .. rows-1, columns start .. end-1."""

    rows: int
    start: int
    end: int

    @property
    def width(self) -> int:
        return self.end - self.start


class PreallocatedLayer(CacheLayerMixin):
    """One layer's keys and values [rows, H, columns, D], of which `extent` is in use.

    What is not in use is finite (zeros, or old values), since a masked column still counts zero
    times its value.
    """

    is_sliding = False

    def __init__(self, extent: Extent, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.extent, self.is_initialized = extent, True
        self.keys: Tensor = keys
        self.values: Tensor = values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        pass

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new columns behind those in use; returns all in use, these included."""
        used, new = self.extent, self.extent.end + key_states.shape[-2]
        self.keys[: used.rows, :, used.end : new] = key_states
        self.values[: used.rows, :, used.end : new] = value_states
        seen = (slice(used.rows), slice(None), slice(used.start, new))
        return self.keys[seen], self.values[seen]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns seen by the next pass, and the first of them."""
        return self.extent.width + query_length, 0

    def get_seq_length(self) -> int:
        return self.extent.width

    def get_max_length(self) -> int:
        return -1  # no limit


class ContinuousBatch(KVBatch):
    """Rows of a decoder without sliding windows; any row joins at any time.

    Args:
        cache: keys and values of the prompts, W columns, as the first pass left them.
        padding: [B, W], 0 at padding.
    """

    def __init__(self, model: Any, cache: Cache, padding: Tensor, logits: Tensor) -> None:
        self.model, self.logits = model, logits
        self.extent = Extent(rows=len(padding), start=0, end=padding.shape[1])
        self.lengths = padding.sum(-1)
        # columns from a row's first token on: more than its tokens, where it is padded between a
        # gist and a shorter input
        self.spans = padding.shape[1] - padding.argmax(-1)
        self.padding = padding[:, None, :, None].clone()  # shaped as the others
        layers: list[Any] = cache.layers
        self.layers = [PreallocatedLayer(self.extent, layer.keys, layer.values) for layer in layers]
        self.cache = Cache(layers=list(self.layers))

    def step(self, tokens: Tensor) -> None:
        used = self.extent
        self._reserve(used.rows, left=0, right=1)
        self.padding[: used.rows, :, used.end] = 1
        output = self.model(
            input_ids=tokens[:, None],
            attention_mask=self.padding[: used.rows, 0, used.start : used.end + 1, 0],
            position_ids=self.lengths[:, None],
            **{CACHE: self.cache},
        )
        used.end += 1
        self.lengths, self.spans = self.lengths + 1, self.spans + 1
        self.logits = output.logits[:, -1]

    def join(self, other: Self) -> None:
        used, added = self.extent, other.extent
        wider = max(0, added.width - used.width)
        self._reserve(used.rows + added.rows, left=wider, right=1)
        self.padding[: used.rows, :, used.start - wider : used.start] = 0
        used.start -= wider
        rows = slice(used.rows, used.rows + added.rows)
        self.padding[rows, :, used.start : used.end] = 0
        for target, source in zip(self._tensors(), other._tensors(), strict=True):
            target[rows, :, used.end - added.width : used.end] = source[
                : added.rows, :, added.start : added.end
            ]
        used.rows += added.rows
        self.lengths = torch.cat([self.lengths, other.lengths])
        self.spans = torch.cat([self.spans, other.spans])
        self.logits = torch.cat([self.logits, other.logits])

    def drop(self, rows: Sequence[int]) -> list[int]:
        """The last rows move into the gaps; columns of padding alone are cut."""
        used, order = self.extent, list(range(self.extent.rows))
        for row in sorted(rows, reverse=True):
            last = order.pop()
            if row < len(order):
                order[row] = last
        moved = [row for row, old in enumerate(order) if row != old]
        if moved:
            sources = [order[row] for row in moved]
            for tensor in self._tensors():
                tensor[moved] = tensor[sources]
        rest = torch.tensor(order, device=self.lengths.device, dtype=torch.long)
        self.lengths, self.logits = self.lengths[rest], self.logits[rest]
        self.spans = self.spans[rest]
        used.rows = len(order)
        used.start = used.end - int(self.spans.max()) if order else used.end
        return order

    def repeat(self, rows: Sequence[int]) -> None:
        chosen = torch.tensor(rows, device=self.lengths.device)
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[chosen], layer.values[chosen]
        self.padding, self.extent.rows = self.padding[chosen], len(rows)
        self.lengths, self.logits = self.lengths[chosen], self.logits[chosen]
        self.spans = self.spans[chosen]

    def _tensors(self) -> list[Tensor]:
        """All that has rows and columns, each [rows, ·, columns, ·]."""
        return [t for layer in self.layers for t in (layer.keys, layer.values)] + [self.padding]

    def _reserve(self, rows: int, *, left: int, right: int) -> None:
        """Make room for so many rows, and columns on either side."""
        used, (depth, _, columns, _) = self.extent, self.padding.shape
        if rows <= depth and left <= used.start and used.end + right <= columns:
            return
        depth = rows + rows // 4 if rows > depth else min(depth, rows + rows // 4)
        columns = left + used.width + right + COLUMNS

        def moved(tensor: Tensor) -> Tensor:
            roomy = tensor.new_zeros((depth, tensor.shape[1], columns, tensor.shape[3]))
            roomy[: used.rows, :, left : left + used.width] = tensor[
                : used.rows, :, used.start : used.end
            ]
            return roomy

        for layer in self.layers:
            layer.keys, layer.values = moved(layer.keys), moved(layer.values)
        self.padding = moved(self.padding)
        used.start, used.end = left, left + used.width
