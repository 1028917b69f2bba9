"""What a model family must know: the masked forward pass, compressing, and generating on a prefix.

An adapter is all of a family's knowledge about gists. It wraps a transformers model without
changing it; everything else in the package speaks to adapters only.

Shapes: B batch, S sequence, P instruction, K gist tokens, L input, T new tokens, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from gisting import masks
from gisting.gist import Prefix


class Adapter(ABC):
    """A transformers model of one family, seen through gists."""

    padding_side: str
    """Which side of a training batch is padded."""

    default_template: str
    """The published template of the family."""

    can_cache_prompts: bool
    """Whether a whole prompt's activations may be kept before its input is known."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model: Any = model  # called as a function; transformers types that loosely

    @property
    @abstractmethod
    def max_positions(self) -> int | None:
        """The longest sequence for which the theorem holds, in tokens; None where there is none."""

    @abstractmethod
    def forward(
        self,
        ids: Tensor,
        padding: Tensor,
        *,
        gist_id: int,
        condition: str | Sequence[str],
        labels: Tensor | None = None,
        loss_only: bool = False,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """One full pass under the condition's mask: what training computes.

        Args:
            ids: [B, S] prompts with their gist spans (decoder-only: and their outputs).
            padding: [B, S], 0 at padding.
            gist_id: the id of `<GIST>`.
            condition: one for all rows, or one for each.
            labels: [B, S] (encoder-decoder: [B, T]) targets, -100 where there is none.
            loss_only: the logits are not needed: compute them only where labels are.
            model: the model as a trainer wrapped it, if it did.

        Returns:
            The model's own output: `logits` [B, S or T, V], `loss` where labels are given.

        Raises:
            MaskError: the gist tokens of a row are not one contiguous span.
        """

    @abstractmethod
    def compress(self, ids: Tensor, padding: Tensor, num_gist_tokens: int) -> dict[str, Tensor]:
        """Activations of the gist tokens that end each row of `ids` [B, P + K], left-padded."""

    @abstractmethod
    def cache_prompt(self, ids: Tensor, padding: Tensor) -> dict[str, Tensor]:
        """Activations of all of `ids` [B, P + K], left-padded: the full-prompt cache."""

    @abstractmethod
    def generate(
        self,
        ids: Tensor,
        padding: Tensor,
        prefix: Prefix | None,
        options: GenerationConfig,
        *,
        gist_id: int,
        **more: Any,
    ) -> Tensor:
        """New tokens after `ids` [B, L] (left-padded), which are read on top of `prefix`.

        `options` and `more` (a streamer, a tokenizer for stop strings) go to transformers'
        `generate`. Without a prefix the ids stand alone.

        Returns:
            [B * sequences asked for, T] new ids.
        """

    @abstractmethod
    def read(
        self, ids: Tensor, padding: Tensor, prefix: Prefix | None, *, gist_id: int, **inputs: Any
    ) -> ModelOutput:
        """One pass over `ids` [B, L] on top of `prefix`: what generation computes first."""


def relabelled(ids: Tensor, gist_id: int, condition: str | Sequence[str]) -> Tensor:
    """Segments of `ids` [B, S] under one condition, or under one for each row."""
    labels = masks.segments(ids, gist_id)
    if isinstance(condition, str):
        return masks.relabel(labels, condition)
    rows = zip(labels, condition, strict=True)
    return torch.stack([masks.relabel(row, one) for row, one in rows])


def by_length(padding: Tensor) -> list[Tensor]:
    """Row numbers of `padding` [B, L] grouped by the number of real tokens."""
    lengths = padding.sum(-1)
    return [(lengths == n).nonzero().flatten() for n in lengths.unique()]


def rows_of(prefix: Prefix | None, rows: Tensor) -> Prefix | None:
    """The given rows of a prefix."""
    return None if prefix is None else type(prefix).stack([prefix[int(r)] for r in rows])


def pad_right(parts: Mapping[int, Tensor], pad_id: int) -> Tensor:
    """Rows by number, of different lengths, as one tensor padded on the right."""
    ordered = [parts[row] for row in sorted(parts)]
    return torch.nn.utils.rnn.pad_sequence(ordered, batch_first=True, padding_value=pad_id)
