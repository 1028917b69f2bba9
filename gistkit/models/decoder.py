"""Decoder-only models with rotary positions: a gist is an ordinary KV-cache prefix.

The trick: rotary attention sees only differences of positions, so `[instruction]<GIST>*k` is run at
positions -P .. k-1. The gist lands at 0 .. k-1 whatever P is, and every library and engine takes it
for the first k tokens of a sequence.

    compress   positions  -3 -2 -1  0  1          keep the last two columns
               tokens      a  b  c  G  G
    read       positions   0  1 | 2  3            cache | input
               tokens      G  G | x  y

Inputs of different lengths are padded between gist and input and masked; positions are counted over
what is not padding. A sliding window counts cache slots, padding too, so where a window could bind
rows are read in groups of one length.

Shapes: B batch, P instruction, K gist tokens, L input, H heads, D head size, N layers.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache, DynamicCache, GenerationConfig, PreTrainedModel
from transformers.masking_utils import create_masks_for_generate
from transformers.utils.generic import ModelOutput

from gistkit.errors import OptionError, PromptError
from gistkit.gist import Prefix
from gistkit.masks import attends, document_positions, relabelled
from gistkit.models import rotary
from gistkit.models.base import Adapter
from gistkit.models.kv_batch import CACHE, ContinuousBatch, KVBatch, StaticBatch


class DecoderAdapter(Adapter):
    """Any rotary decoder of the families table."""

    padding_side = "left"
    default_template = "decoder"
    can_cache_prompts = True
    max_positions: int

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.text_config = model.config.get_text_config()
        self.window = sliding_window(self.text_config)
        self.max_positions = rotary.max_positions(self.text_config)
        # a sliding window counts padding, too, so there rows begin together and are of one length
        self.rows_join = self.rows_differ = self.window is None

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
        """Each layer gets the mask of its type, so sliding windows stay."""
        counted = count_positions(padding) if documents is None else document_positions(documents)
        segments = relabelled(ids, gist_id, condition, documents)
        mask = create_masks_for_generate(
            self.model.config,
            torch.empty((*ids.shape, 0), dtype=self.model.dtype, device=ids.device),
            padding,
            None,  # no cache; by position, since its name differs between versions
            position_ids=counted,
            and_mask_function=attends(segments, documents),
        )
        output: ModelOutput = (self.model if model is None else model)(
            input_ids=ids,
            attention_mask=mask,
            position_ids=counted,
            labels=labels,
            use_cache=False,
            **kwargs,
        )
        return output

    def targets(self, labels: Tensor) -> Tensor:
        """The next position's label."""
        return nn.functional.pad(labels[:, 1:], (0, 1), value=-100)

    @torch.no_grad()
    def compress(self, ids: Tensor, padding: Tensor, num_gist_tokens: int) -> dict[str, Tensor]:
        """Keys and values [B, H, K, D] of each layer at positions 0 .. K-1 (raises OptionError)."""
        if self.window is not None and num_gist_tokens >= self.window:
            raise OptionError(
                f"{num_gist_tokens} gist tokens do not fit the model's sliding window of "
                f"{self.window} tokens; choose fewer"
            )
        first = num_gist_tokens - ids.shape[1]
        positions = torch.arange(first, num_gist_tokens, device=ids.device).expand(ids.shape)
        return self._keep(ids, padding, positions, num_gist_tokens)

    @torch.no_grad()
    def cache_prompt(self, ids: Tensor, padding: Tensor) -> dict[str, Tensor]:
        """Keys and values of the whole prompt (raises PromptError past a sliding window)."""
        if self.window is not None and ids.shape[1] >= self.window:
            raise PromptError(
                f"a prompt of {ids.shape[1]} tokens does not fit the sliding window of "
                f"{self.window}; generate with `instructions` instead"
            )
        return self._keep(ids, padding, count_positions(padding), ids.shape[1])

    def _keep(
        self, ids: Tensor, padding: Tensor, positions: Tensor, last: int
    ) -> dict[str, Tensor]:
        cache = DynamicCache(config=self.text_config)
        self.model.base_model(
            input_ids=ids,
            attention_mask=padding,
            position_ids=positions,
            use_cache=True,
            **{CACHE: cache},
        )
        # clone: a slice would keep the whole pass's cache alive
        return {
            f"layers.{i}.{name}": tensor[:, :, -last:].clone()
            for i, (keys, values, *_) in enumerate(cache)
            for name, tensor in (("keys", keys), ("values", values))
        }

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
        """Raises PromptError where the sequence would get too long."""
        prefix_length = 0 if prefix is None else max(prefix.lengths)
        total = prefix_length + ids.shape[1] + options.max_new_tokens
        self._check_length(total)
        if self._window_binds(total, padding):
            return self._generate_by_length(ids, padding, prefix, options, gist_id=gist_id, **more)
        if prefix is not None:
            ids, padding, cache = self._on_top(ids, padding, prefix, gist_id)
            copies = max(options.num_beams, options.num_return_sequences)
            if copies > 1:  # generate repeats its inputs, but not a cache it is given
                cache.batch_repeat_interleave(copies)
            more[CACHE] = cache
        output = self.model.generate(
            input_ids=ids,
            attention_mask=padding,
            generation_config=options,
            synced_gpus=False,  # a process answers by itself, also among several
            **more,
        )
        assert isinstance(output, Tensor)
        return output[:, ids.shape[1] :]

    def read(
        self, ids: Tensor, padding: Tensor, prefix: Prefix | None, *, gist_id: int, **inputs: Any
    ) -> ModelOutput:
        """With a binding sliding window all rows must have one length."""
        new = ids.shape[1]
        cache: DynamicCache | None = None
        if prefix is not None:
            ids, padding, cache = self._on_top(ids, padding, prefix, gist_id)
        assert not self._window_binds(ids.shape[1], padding[:, -new:]), "read rows of one length"
        output: ModelOutput = self.model(
            input_ids=ids[:, -new:],
            attention_mask=padding,
            position_ids=count_positions(padding)[:, -new:],
            **{CACHE: cache},
            **inputs,
        )
        return output

    @torch.no_grad()
    def begin(
        self, ids: Tensor, padding: Tensor, prefix: Prefix | None, *, gist_id: int
    ) -> KVBatch:
        output = self.read(ids, padding, prefix, gist_id=gist_id, use_cache=True, logits_to_keep=1)
        cache, logits = output[CACHE], output["logits"][:, -1]
        if not self.rows_join:
            return _WindowBatch(self.model, cache, logits)
        if prefix is not None:
            padding = torch.cat([prefix.expand(len(ids)).mask.to(padding.device), padding], dim=1)
        return ContinuousBatch(self.model, cache, padding, logits)

    @cached_property
    def kv_bytes_per_token(self) -> int:
        token = torch.zeros((1, 1), dtype=torch.long, device=self.model.device)
        cached = self.cache_prompt(token, torch.ones_like(token))
        return sum(tensor.numel() * tensor.element_size() for tensor in cached.values())

    def _on_top(
        self, ids: Tensor, padding: Tensor, prefix: Prefix, gist_id: int
    ) -> tuple[Tensor, Tensor, DynamicCache]:
        prefix = prefix.expand(len(ids)).to(device=ids.device)
        mask = prefix.mask
        kinds = None if self.window is None else self.text_config  # reading them takes a while
        names = [f"layers.{i}" for i in range(len(prefix.tensors) // 2)]
        pairs = [(prefix.tensors[f"{n}.keys"], prefix.tensors[f"{n}.values"]) for n in names]
        return (
            torch.cat([torch.full_like(mask, gist_id), ids], dim=1),
            torch.cat([mask, padding], dim=1),
            DynamicCache(pairs, config=kinds),
        )

    def _check_length(self, total: int) -> None:
        if total > self.max_positions:
            raise PromptError(
                f"{total} tokens (gist, input and new ones) are more than the {self.max_positions} "
                "this model can place; shorten the input or reduce `max_new_tokens`"
            )

    def _window_binds(self, total: int, padding: Tensor) -> bool:
        ragged = bool((padding == 0).any())
        return self.window is not None and total > self.window and ragged

    def _generate_by_length(
        self,
        ids: Tensor,
        padding: Tensor,
        prefix: Prefix | None,
        options: GenerationConfig,
        *,
        gist_id: int,
        **more: Any,
    ) -> Tensor:
        answers: list[Tensor] = [ids[0]] * len(ids) * options.num_return_sequences
        numbers = torch.arange(len(answers)).view(len(ids), -1)
        expanded = None if prefix is None else prefix.expand(len(ids))
        lengths = padding.sum(-1)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero().flatten()
            output = self.generate(
                ids[rows, -length:],
                padding[rows, -length:],
                None if expanded is None else expanded.select(rows),
                options,
                gist_id=gist_id,
                **more,
            )
            for number, answer in zip(numbers[rows.cpu()].flatten(), output, strict=True):
                answers[int(number)] = answer
        return pad_sequence(answers, batch_first=True, padding_value=int(options.pad_token_id))


class _WindowBatch(StaticBatch):
    """Rows of one length, hence without padding, in a model with sliding windows."""

    def __init__(self, model: Any, cache: Cache, logits: Tensor) -> None:
        super().__init__(cache, logits)
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        output = self.model(input_ids=tokens, **{CACHE: self.cache})  # no padding, no mask
        return output["logits"]  # type: ignore[no-any-return]


def count_positions(padding: Tensor) -> Tensor:
    """Positions [B, S] counted over what is not padding, as `generate` counts them."""
    return (padding.long().cumsum(-1) - 1).clamp(min=0)


def sliding_window(config: Any) -> int | None:
    """The sliding window of a text config in tokens; None where every layer sees everything."""
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if window is None or (kinds is not None and "sliding_attention" not in kinds):
        return None
    return int(window)
