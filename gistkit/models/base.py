"""What a model family must know: the masked forward pass, compressing, and generating on a prefix.

An adapter is all of a family's knowledge about gists. It wraps a transformers model without
changing it; everything else in the package speaks to adapters only.

Shapes: B batch, S sequence, P instruction, K gist tokens, L input, T target or new tokens,
V vocabulary, M labelled tokens of a batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from gistkit.gist import Prefix
from gistkit.models.kv_batch import KVBatch

Hook = Callable[
    [nn.Module, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]
]
"""The arguments of a module's call, and what to call it with."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """What a model predicts where a batch has labels, in reading order: all that a loss reads.

    Attributes:
        logits: [M, V].
        targets: [M] ids.
        documents: [M] number of the row (of the document, in packed rows) of each.
    """

    logits: Tensor
    targets: Tensor
    documents: Tensor

    def cross_entropy(self) -> Tensor:
        """Losses [M] in nats, float32."""
        return functional.cross_entropy(self.logits.float(), self.targets, reduction="none")


class Adapter(ABC):
    """A transformers model of one family, seen through gists."""

    padding_side: str
    """Which side of a training batch is padded."""

    default_template: str
    """The published template of the family."""

    can_cache_prompts: bool
    """Whether a whole prompt's activations may be kept before its input is known."""

    rows_join: bool
    """Whether a prompt may join others that are being decoded already (`begin`)."""

    rows_differ: bool
    """Whether prompts of different lengths may be decoded together (`begin`)."""

    max_positions: int | None
    """The longest sequence for which the theorem holds, in tokens; None where there is no limit."""

    model: Any  # called as a function; transformers types that loosely

    @abstractmethod
    def __init__(self, model: PreTrainedModel) -> None:
        """Wrap a model whose config `adapter_class` has accepted."""

    @property
    @abstractmethod
    def kv_bytes_per_token(self) -> int:
        """Memory that one token of one row keeps while it is decoded, in bytes."""

    @abstractmethod
    def forward(
        self,
        ids: Tensor,
        padding: Tensor,
        *,
        gist_id: int,
        condition: str | Sequence[str],
        documents: Tensor | None = None,
        labels: Tensor | None = None,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """One full pass under the condition's mask: what training computes.

        Args:
            ids: [B, S] prompts with their gist spans (decoder-only: and their outputs).
            padding: [B, S], 0 at padding.
            gist_id: the id of `<GIST>`.
            condition: one for all rows, or one for each (packed rows: for each document).
            documents: [B, S] number of each token's document, -1 at padding, in packed rows.
            labels: [B, S] (encoder-decoder: [B, T]) targets, -100 where there is none.
            model: the model as a trainer wrapped it, if it did.

        Returns:
            The model's own output: `logits` [B, S or T, V], `loss` where labels are given.

        Raises:
            MaskError: the gist tokens of a row are not one contiguous span.
        """

    def labelled(
        self,
        ids: Tensor,
        padding: Tensor,
        labels: Tensor,
        *,
        gist_id: int,
        condition: str | Sequence[str],
        documents: Tensor | None = None,
        label_documents: Tensor | None = None,
        model: nn.Module | None = None,
    ) -> Labelled:
        """`forward`, with logits computed only where there is something to predict.

        The output layer is most of a step where vocabularies are large, and most tokens of a row
        are prompt or padding. Arguments as in `forward`; raises as it does.

        Args:
            label_documents: [B, T] number of each label's document, for packed encoder-decoders.
        """
        targets = self.targets(labels)
        keep = targets != -100
        owners = documents if label_documents is None else label_documents
        if owners is None:
            owners = torch.arange(len(labels), device=labels.device)[:, None].expand(labels.shape)

        def select(
            module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return (args[0][keep][None], *args[1:]), given

        # a hook, since it works through every wrapper a trainer may put around the model
        with hooked([(self.model.get_output_embeddings(), select)]):
            output = self.forward(
                ids,
                padding,
                gist_id=gist_id,
                condition=condition,
                documents=documents,
                model=model,
                **self.decoder_inputs(labels, label_documents),
            )
        return Labelled(output["logits"][0], targets[keep], owners[keep])

    @abstractmethod
    def targets(self, labels: Tensor) -> Tensor:
        """The id each position is to predict, -100 where none: shaped as `labels`."""

    def decoder_inputs(self, labels: Tensor, label_documents: Tensor | None) -> dict[str, Any]:
        """What a decoder of its own is given for these labels; nothing where there is none."""
        return {}

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
            [B * num_return_sequences, T] new ids.
        """

    @abstractmethod
    def read(
        self, ids: Tensor, padding: Tensor, prefix: Prefix | None, *, gist_id: int, **inputs: Any
    ) -> ModelOutput:
        """One pass over `ids` [B, L] on top of `prefix`: what generation computes first."""

    @abstractmethod
    def begin(
        self, ids: Tensor, padding: Tensor, prefix: Prefix | None, *, gist_id: int
    ) -> KVBatch:
        """Read `ids` [B, L] (left-padded) on top of `prefix`, to be decoded step by step.

        What `generate` does in one call, for callers that act between two tokens.
        """


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Hook]]) -> Iterator[None]:
    """Let hooks replace what modules are called with, inside a `with`."""
    handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def with_arguments(module: nn.Module, arguments: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Replace keyword arguments of a module's calls inside a `with`."""
    return hooked([(module, lambda module, args, given: (args, {**given, **arguments}))])
