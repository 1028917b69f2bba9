"""The T5 family: a gist is k rows of the hidden states that enter each encoder block.

An encoder keeps no KV cache. So the rows of the gist tokens are recorded before every block while
`[instruction]<GIST>*k` is encoded, and the final output with them. To use a gist,
`<GIST>*k [input]` is encoded and the first k rows are overwritten before each block; what the
blocks compute for those rows is discarded. T5's bias depends on differences of positions only, so
it comes out right by itself. The decoder sees gist and input.

The hooks live inside a `with` and on one thread at a time.

Shapes: B batch, P instruction, K gist tokens, L input, T target, E hidden size, N encoder blocks.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import ModelOutput

from gistkit.errors import OptionError
from gistkit.gist import Prefix
from gistkit.masks import attends, cross_attention, document_starts, relabelled, same_document
from gistkit.models.base import Adapter, Hook, hooked, with_arguments
from gistkit.models.kv_batch import CACHE, KVBatch, StaticBatch

Edit = Callable[[Tensor], Tensor]


class EncoderDecoderAdapter(Adapter):
    """T5, T5 v1.1 and FLAN-T5."""

    padding_side = "right"
    default_template = "encoder-decoder"
    can_cache_prompts = False
    rows_join = False  # the decoder's positions are counted from where all rows begin
    rows_differ = True
    max_positions = None  # relative biases have no last position

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.encoder: Any = model.get_encoder()
        self._lock = threading.RLock()

    def forward(
        self,
        ids: Tensor,
        padding: Tensor,
        *,
        gist_id: int,
        condition: str | Sequence[str],
        documents: Tensor | None = None,
        labels: Tensor | None = None,
        label_documents: Tensor | None = None,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """The encoder takes the gist mask, the decoder the cross mask."""
        relabels = relabelled(ids, gist_id, condition, documents)
        cross = cross_attention(relabels, padding)
        mask = create_bidirectional_mask(
            config=self.encoder.config,
            inputs_embeds=self._shaped_as(ids),
            attention_mask=padding,
            and_mask_function=attends(relabels, documents),
        )
        given = [(self.encoder, {"attention_mask": mask})]
        if documents is not None and label_documents is not None:
            packed = self._packed_decoder_masks(documents, label_documents, cross)
            given.append((self.model.get_decoder(), packed))
        with self._lock, ExitStack() as hooks:
            for stack, arguments in given:
                hooks.enter_context(with_arguments(stack, arguments))
            output: ModelOutput = (self.model if model is None else model)(
                input_ids=ids, attention_mask=cross, labels=labels, **kwargs
            )
        return output

    def targets(self, labels: Tensor) -> Tensor:
        """The labels themselves: the decoder's inputs are shifted instead."""
        return labels

    def decoder_inputs(self, labels: Tensor, label_documents: Tensor | None) -> dict[str, Any]:
        """Labels shifted right, each document's first input being the start token."""
        config = self.model.config
        shifted = labels.roll(1, dims=-1)
        documents = torch.zeros_like(labels) if label_documents is None else label_documents
        starts = document_starts(documents)
        shifted = shifted.masked_fill(shifted == -100, config.pad_token_id)
        return {
            "decoder_input_ids": shifted.masked_fill(starts, config.decoder_start_token_id),
            "label_documents": label_documents,
        }

    def _packed_decoder_masks(
        self, documents: Tensor, label_documents: Tensor, cross: Tensor
    ) -> dict[str, Any]:
        decoder, targets = self.model.get_decoder(), self._shaped_as(label_documents)
        return {
            "attention_mask": create_causal_mask(
                decoder.config,
                targets,
                (label_documents >= 0).long(),
                None,  # no cache; by position, since its name differs between versions
                and_mask_function=same_document(label_documents, label_documents),
            ),
            "encoder_attention_mask": create_bidirectional_mask(
                config=decoder.config,
                inputs_embeds=targets,
                attention_mask=cross,
                encoder_hidden_states=self._shaped_as(documents),
                and_mask_function=same_document(label_documents, documents),
            ),
        }

    def _shaped_as(self, ids: Tensor) -> Tensor:
        # transformers reads shape, dtype and device of embeddings when it builds a mask
        return torch.empty((*ids.shape, 0), dtype=self.model.dtype, device=ids.device)

    @torch.no_grad()
    def compress(self, ids: Tensor, padding: Tensor, num_gist_tokens: int) -> dict[str, Tensor]:
        """Rows [B, K, E] that enter each encoder block, and those of the encoder's output."""
        tensors: dict[str, Tensor] = {}

        def record(name: str) -> Edit:
            def edit(hidden: Tensor) -> Tensor:
                tensors[name] = hidden[:, -num_gist_tokens:].clone()
                return hidden

            return edit

        with self._before_blocks(record):
            output = self.encoder(input_ids=ids, attention_mask=padding).last_hidden_state
        tensors["output.hidden"] = output[:, -num_gist_tokens:].clone()
        return tensors

    def cache_prompt(self, ids: Tensor, padding: Tensor) -> dict[str, Tensor]:
        """Refused: an unmasked encoder lets the instruction see the input (raises OptionError)."""
        raise OptionError(
            "an encoder-decoder cannot cache a full prompt: its encoder reads instruction and "
            "input both ways; generate with `instructions` instead"
        )

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
        states, mask = self._encode(ids, padding, prefix, gist_id)
        output = self.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            generation_config=options,
            synced_gpus=False,  # a process answers by itself, also among several
            **more,
        )
        assert isinstance(output, Tensor)
        return output[:, 1:]  # the decoder's start token

    def read(
        self, ids: Tensor, padding: Tensor, prefix: Prefix | None, *, gist_id: int, **inputs: Any
    ) -> ModelOutput:
        """Takes `labels` or `decoder_input_ids` [B, T]."""
        states, mask = self._encode(ids, padding, prefix, gist_id)
        output: ModelOutput = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            **inputs,
        )
        return output

    @torch.no_grad()
    def begin(
        self, ids: Tensor, padding: Tensor, prefix: Prefix | None, *, gist_id: int
    ) -> KVBatch:
        states, mask = self._encode(ids, padding, prefix, gist_id)
        start = torch.full((len(ids), 1), self.model.config.decoder_start_token_id)
        rows = _DecoderBatch(self.model, states, mask)
        rows.step(start[:, 0].to(ids.device))
        return rows

    @cached_property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of every decoder layer: of its own tokens, and of the encoder's."""
        config = self.model.config
        layers, width = config.num_decoder_layers, config.num_heads * config.d_kv
        return int(2 * layers * width * self.model.dtype.itemsize)

    @torch.no_grad()
    def _encode(
        self, ids: Tensor, padding: Tensor, prefix: Prefix | None, gist_id: int
    ) -> tuple[Tensor, Tensor]:
        """Encoder output [B, K + L, E] and its 2-D mask, the gist's rows taken from `prefix`."""
        if prefix is None:
            with self._lock:  # another thread's hooks would be run here, too
                output = self.encoder(input_ids=ids, attention_mask=padding)
            return output.last_hidden_state, padding
        prefix = prefix.expand(len(ids)).to(device=ids.device)
        k = prefix.num_tokens
        # gist and input must be neighbours: relative biases count columns
        ids, padding = align_left(ids, padding)
        ids = torch.cat([torch.full_like(prefix.mask, gist_id), ids], dim=1)
        mask = torch.cat([prefix.mask, padding], dim=1)

        def overwrite(name: str) -> Edit:
            rows = prefix.tensors[name]
            return lambda hidden: torch.cat([rows, hidden[:, k:]], dim=1)

        with self._before_blocks(overwrite):
            output = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return overwrite("output.hidden")(output), mask

    @contextmanager
    def _before_blocks(self, edit_for: Callable[[str], Edit]) -> Iterator[None]:
        """Pass the hidden states that enter each encoder block through an edit."""

        def hook_for(name: str) -> Hook:
            edit = edit_for(name)
            return lambda module, args, given: ((edit(args[0]), *args[1:]), given)

        blocks = enumerate(self.encoder.block)
        with self._lock, hooked([(block, hook_for(f"blocks.{i}.hidden")) for i, block in blocks]):
            yield


class _DecoderBatch(StaticBatch):
    """Rows of a T5 decoder on `states` [B, K + L, E] with their `mask` [B, K + L]."""

    def __init__(self, model: Any, states: Tensor, mask: Tensor) -> None:
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        super().__init__(cache, states[:, 0])  # logits come with the first step
        self.model, self.states, self.mask = model, states, mask

    def forward(self, tokens: Tensor) -> Tensor:
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self.states),
            attention_mask=self.mask,
            decoder_input_ids=tokens,
            **{CACHE: self.cache},
        )
        return output["logits"]  # type: ignore[no-any-return]

    def select(self, rows: Tensor) -> None:
        super().select(rows)
        self.states, self.mask = self.states[rows], self.mask[rows]


def align_left(ids: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    """Move padding of `ids` [B, L] to the right of each row."""
    order = (padding == 0).long().argsort(dim=-1, stable=True)
    return ids.gather(1, order), padding.gather(1, order)
