"""The same prompts answered in three ways: without a cache, from cached instructions, from gists.

    standard      reads  instruction GIST*k input
    instruction   reads  input  on top of the activations of  instruction GIST*k
    gist          reads  input  on top of the activations of  GIST*k

Works on ids, so nothing but the model is measured. An answer has exactly as many tokens as asked
for. Caches are made beforehand, as a server has them; making them is measured apart.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from gistkit.benchmark.memory import joules
from gistkit.benchmark.rows import GIST, INSTRUCTION, STANDARD
from gistkit.gist import Gist, Prefix, provenance_of
from gistkit.model import GistModel
from gistkit.models.inputs import decoding_options


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to a batch.

    Attributes:
        prefill: seconds until the first new token; `decode`: from there to the last.
        ids: [B, T] new tokens.
        joules: energy, where the device tells.
    """

    prefill: float
    decode: float
    ids: Tensor
    joules: float | None

    @property
    def total(self) -> float:
        """Seconds from the prompt to the last token."""
        return self.prefill + self.decode


@dataclass(frozen=True, slots=True)
class Prompts:
    """B prompts as ids, each instruction with its k gist tokens."""

    model: GistModel
    instructions: Sequence[list[int]]
    inputs: Sequence[list[int]]
    k: int

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways this model knows: an encoder cannot keep instructions."""
        return (STANDARD, *((INSTRUCTION,) if self.model.adapter.can_cache_prompts else ()), GIST)

    def make(self, way: str) -> Prefix | None:
        """What a way keeps: a gist, cached instructions, nothing."""
        if way == STANDARD:
            return None
        ids, padding = self.model.pad(self.instructions)
        unknown = provenance_of([""] * len(ids), [len(row) - self.k for row in self.instructions])
        about = {
            "provenance": unknown,
            "model": self.model.fingerprint,
            "template": self.model.config.template,
        }
        if way == GIST:
            tensors = self.model.adapter.compress(ids, padding, self.k)
            return Gist(tensors=tensors, lengths=(self.k,) * len(ids), **about)  # type: ignore[arg-type]
        tensors = self.model.adapter.cache_prompt(ids, padding)
        lengths = tuple(len(row) for row in self.instructions)
        return Prefix(tensors=tensors, lengths=lengths, **about)  # type: ignore[arg-type]

    def read(self, prefix: Prefix | None) -> Any:
        """One pass over what a way has to read; of an encoder-decoder also one decoder step."""
        ids, padding = self._to_read(prefix)
        more: dict[str, Any] = {"logits_to_keep": 1}
        if not self.model.adapter.can_cache_prompts:
            start = int(self.model.hf_model.config.decoder_start_token_id)
            more = {"decoder_input_ids": torch.full((len(ids), 1), start, device=ids.device)}
        with torch.no_grad():
            return self.model.adapter.read(
                ids, padding, prefix, gist_id=self.model.gist_id, use_cache=True, **more
            )

    def answer(self, prefix: Prefix | None, new: int) -> Answer:
        """Greedy answers of `new` tokens through transformers' own `generate`."""
        ids, padding = self._to_read(prefix)
        clock = _Clock(ids.device)
        energy = joules(ids.device)
        start = clock.now()
        said = self.model.adapter.generate(
            ids,
            padding,
            prefix,
            self._options(new),
            gist_id=self.model.gist_id,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        end = clock.now()
        used = joules(ids.device)
        spent = None if energy is None or used is None else used - energy
        return Answer(clock.times[0] - start, end - clock.times[0], said, spent)

    def expected(self, way: str, said: Tensor) -> Tensor:
        """What the full pass, under the way's mask and without a cache, would say: ids [B, T]."""
        condition = "gist" if way == GIST else "pos_control"
        rows = [p + x for p, x in zip(self.instructions, self.inputs, strict=True)]
        more: dict[str, Any] = {}
        if self.model.adapter.can_cache_prompts:
            rows = [row + answer for row, answer in zip(rows, said.tolist(), strict=True)]
            more["logits_to_keep"] = said.shape[1] + 1
        else:
            start = int(self.model.hf_model.config.decoder_start_token_id)
            first = said.new_full((len(said), 1), start)
            more["decoder_input_ids"] = torch.cat([first, said], dim=1)
        ids, padding = self.model.pad(rows)
        with torch.no_grad():
            output: Any = self.model.adapter.forward(
                ids, padding, gist_id=self.model.gist_id, condition=condition, **more
            )
        best: Tensor = output.logits[:, :-1].argmax(-1)
        return best

    def _to_read(self, prefix: Prefix | None) -> tuple[Tensor, Tensor]:
        if prefix is not None:
            return self.model.pad(self.inputs)
        return self.model.pad([p + x for p, x in zip(self.instructions, self.inputs, strict=True)])

    def _options(self, new: int) -> GenerationConfig:
        return decoding_options(
            max_new_tokens=new,
            do_sample=False,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            num_beams=1,
            num_return_sequences=1,
            streamed=False,
            pad_token_id=self.model.tokenizer.pad_token_id,
            # an id no model says: every answer has as many tokens as were asked for
            eos_token_id=int(self.model.hf_model.config.get_text_config().vocab_size),
        )


class _Clock(StoppingCriteria):
    """Notes when each token is there, and never stops."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: list[float] = []

    def now(self) -> float:
        """The time when the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        if not self.times:  # waiting at every token would slow decoding down
            self.times.append(self.now())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
