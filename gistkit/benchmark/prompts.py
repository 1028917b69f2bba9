"""A batch of prompts as ids, in three modes: nothing kept, cached instructions, gists.

    standard      reads  instruction GIST*k input
    instruction   reads  input  on top of the activations of  instruction GIST*k
    gist          reads  input  on top of the activations of  GIST*k

These are the modes of `gistkit.baselines` on ids, under the names of the published files: only the
model is measured, and every answer has exactly the requested number of tokens. Caches are made in
advance, as in a server; making them is measured separately.

Shapes: B batch, T new tokens, V vocabulary.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from gistkit.benchmark.costs import joules
from gistkit.benchmark.files import GIST, INSTRUCTION, STANDARD
from gistkit.conditions import FROM_GIST, FULL_PROMPT, condition_for
from gistkit.gist import Gist, Prefix, provenance_of
from gistkit.model import GistModel
from gistkit.models.inputs import decoding_options
from gistkit.timing import synchronize


@dataclass(frozen=True, slots=True)
class TimedAnswer:
    """Answers to a batch, with the seconds until the first new token and from there to the last."""

    prefill: float
    decode: float
    ids: Tensor  # [B, T]
    joules: float | None  # where the device reports it

    @property
    def total(self) -> float:
        return self.prefill + self.decode


@dataclass(frozen=True, slots=True)
class Prompts:
    """B prompts as ids, each instruction with its k gist tokens."""

    model: GistModel
    instructions: Sequence[list[int]]
    inputs: Sequence[list[int]]
    k: int

    def __len__(self) -> int:
        return len(self.instructions)

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes this model has: an encoder cannot keep instructions."""
        return (STANDARD, *((INSTRUCTION,) if self.model.adapter.can_cache_prompts else ()), GIST)

    @property
    def rows(self) -> list[list[int]]:
        return [p + x for p, x in zip(self.instructions, self.inputs, strict=True)]

    def prepare(self, mode: str) -> Prefix | None:
        if mode == STANDARD:
            return None
        ids, padding = self.model.pad(self.instructions)
        about: dict[str, Any] = {
            "provenance": provenance_of(
                [""] * len(self), [len(p) - self.k for p in self.instructions]
            ),
            "model": self.model.fingerprint,
            "template": self.model.config.template,
        }
        if mode == GIST:
            tensors = self.model.adapter.compress(ids, padding, self.k)
            return Gist(tensors=tensors, lengths=(self.k,) * len(self), **about)
        tensors = self.model.adapter.cache_prompt(ids, padding)
        return Prefix(tensors=tensors, lengths=tuple(map(len, self.instructions)), **about)

    def read(self, prefix: Prefix | None) -> Any:
        """One pass over what has to be read; of an encoder-decoder also one decoder step."""
        ids, padding = self._to_read(prefix)
        more: dict[str, Any] = {"logits_to_keep": 1}
        if not self.model.adapter.can_cache_prompts:
            more = {"decoder_input_ids": self._start(ids)}
        with torch.no_grad():
            return self.model.adapter.read(
                ids, padding, prefix, gist_id=self.model.gist_id, use_cache=True, **more
            )

    def answer(self, prefix: Prefix | None, new: int) -> TimedAnswer:
        """Greedy answers of `new` tokens through transformers' own `generate`."""
        ids, padding = self._to_read(prefix)
        clock = _FirstToken(ids.device)
        options = decoding_options(
            max_new_tokens=new,
            pad_token_id=self.model.tokenizer.pad_token_id,
            # an id that no model predicts: no answer ends early
            eos_token_id=int(self.model.hf_model.config.get_text_config().vocab_size),
        )
        energy = joules(ids.device)
        start = clock.now()
        answers = self.model.adapter.generate(
            ids,
            padding,
            prefix,
            options,
            gist_id=self.model.gist_id,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        end = clock.now()
        used = joules(ids.device)
        spent = None if energy is None or used is None else used - energy
        assert clock.first is not None
        return TimedAnswer(clock.first - start, end - clock.first, answers, spent)

    def full_pass(self, mode: str, answers: Tensor) -> Tensor:
        """Logits [B, T, V] of one pass under the mode's mask, with no cache, for answers [B, T]."""
        more: dict[str, Any] = {}
        rows = self.rows
        if self.model.adapter.can_cache_prompts:
            rows = [row + answer for row, answer in zip(rows, answers.tolist(), strict=True)]
            more["logits_to_keep"] = answers.shape[1] + 1
        else:
            more["decoder_input_ids"] = torch.cat([self._start(answers), answers], dim=1)
        ids, padding = self.model.pad(rows)
        with torch.no_grad():
            output: Any = self.model.adapter.forward(
                ids,
                padding,
                gist_id=self.model.gist_id,
                condition=condition_for(FROM_GIST if mode == GIST else FULL_PROMPT),
                **more,
            )
        logits: Tensor = output.logits[:, :-1]
        return logits

    def _to_read(self, prefix: Prefix | None) -> tuple[Tensor, Tensor]:
        return self.model.pad(self.rows if prefix is None else self.inputs)

    def _start(self, ids: Tensor) -> Tensor:
        start = int(self.model.hf_model.config.decoder_start_token_id)
        return ids.new_full((len(ids), 1), start)


class _FirstToken(StoppingCriteria):
    """Records the time of the first token, and never stops."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.first: float | None = None

    def now(self) -> float:
        synchronize(self.device)
        return time.perf_counter()

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        if self.first is None:  # waiting at every token would slow decoding down
            self.first = self.now()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
