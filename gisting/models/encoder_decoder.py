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
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import ModelOutput

from gisting import masks
from gisting.errors import OptionError
from gisting.gist import Prefix
from gisting.models.base import Adapter, relabelled

Edit = Callable[[Tensor], Tensor]


class EncoderDecoderAdapter(Adapter):
    """T5, T5 v1.1 and FLAN-T5."""

    padding_side = "right"
    default_template = "encoder-decoder"
    can_cache_prompts = False

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.encoder: Any = model.get_encoder()
        self._lock = threading.RLock()

    @property
    def max_positions(self) -> int | None:
        """None: relative biases have no last position."""
        return None

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
        """See `Adapter.forward`. The encoder takes the gist mask, the decoder the cross mask."""
        relabels = relabelled(ids, gist_id, condition)
        mask = create_bidirectional_mask(
            config=self.encoder.config,
            inputs_embeds=torch.empty((*ids.shape, 0), dtype=self.model.dtype, device=ids.device),
            attention_mask=padding,
            and_mask_function=masks.attends(relabels),
        )

        def use_gist_mask(
            module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return args, {**given, "attention_mask": mask}

        with self._lock:
            hook = self.encoder.register_forward_pre_hook(use_gist_mask, with_kwargs=True)
            try:
                output: ModelOutput = (model or self.model)(
                    input_ids=ids,
                    attention_mask=masks.cross_attention(relabels, padding),
                    labels=labels,
                    **kwargs,
                )
            finally:
                hook.remove()
        return output

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
            "input both ways; generate with instructions= instead"
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
        """See `Adapter.generate`."""
        states, mask = self._encode(ids, padding, prefix, gist_id)
        output = self.model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            generation_config=options,
            **more,
        )
        assert isinstance(output, Tensor)
        return output[:, 1:]  # the decoder's start token

    def read(
        self, ids: Tensor, padding: Tensor, prefix: Prefix | None, *, gist_id: int, **inputs: Any
    ) -> ModelOutput:
        """See `Adapter.read`; takes `labels` or `decoder_input_ids` [B, T]."""
        states, mask = self._encode(ids, padding, prefix, gist_id)
        output: ModelOutput = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=states),
            attention_mask=mask,
            **inputs,
        )
        return output

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
        kept = prefix.num_tokens
        # gist and input must be neighbours: relative biases count columns
        ids, padding = align_left(ids, padding)
        ids = torch.cat([torch.full_like(prefix.mask, gist_id), ids], dim=1)
        mask = torch.cat([prefix.mask, padding], dim=1)

        def overwrite(name: str) -> Edit:
            rows = prefix.tensors[name]
            return lambda hidden: torch.cat([rows, hidden[:, kept:]], dim=1)

        with self._before_blocks(overwrite):
            output = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return overwrite("output.hidden")(output), mask

    @contextmanager
    def _before_blocks(self, edit_for: Callable[[str], Edit]) -> Iterator[None]:
        """Pass the hidden states that enter each encoder block through an edit."""

        def hook_for(name: str) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
            edit = edit_for(name)

            def hook(
                module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]
            ) -> tuple[tuple[Any, ...], dict[str, Any]]:
                return (edit(args[0]), *args[1:]), given

            return hook

        with self._lock:
            hooks = [
                block.register_forward_pre_hook(hook_for(f"blocks.{i}.hidden"), with_kwargs=True)
                for i, block in enumerate(self.encoder.block)
            ]
            try:
                yield
            finally:
                for one in hooks:
                    one.remove()


def align_left(ids: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    """Move padding of `ids` [B, L] to the right of each row."""
    order = (padding == 0).long().argsort(dim=-1, stable=True)
    return ids.gather(1, order), padding.gather(1, order)
