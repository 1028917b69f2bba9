"""What is measured: a random LLaMA of a given shape, and texts of an exact number of tokens.

Speed does not depend on what the weights say. A word is a token, so lengths are exact through the
public, text-only interface; and no special token is ever said (their output rows are zero, a logit
that is never the largest), so every answer has exactly as many tokens as were asked for.
"""

import random
import time
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.generation.streamers import BaseStreamer

from experiments.protocol import Timing
from gistkit import Gist, GistModel, Prefix

SPECIALS = ("<unk>", "<s>", "</s>", "<pad>")
MARKS = ("Instruction", "Input", "Output", ":")
INSTRUCTION_MARKS = 3  # <s> Instruction :
INPUT_MARKS = 4  # Input : Output :


@dataclass(frozen=True, slots=True)
class Shape:
    """A LLaMA's size."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocab: int


PUBLISHED = Shape(hidden=448, intermediate=1152, layers=6, heads=7, vocab=8000)
"""21.3M parameters: the shape of the published implementation's caching measurement."""

TINY = Shape(hidden=32, intermediate=64, layers=2, heads=2, vocab=256)
"""Quick enough to try the benchmarks themselves."""


def make_model(
    shape: Shape, *, seed: int, device: str = "cpu", dtype: str = "float32"
) -> GistModel:
    """A gist model (k = 1) with random weights."""
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        initializer_range=shape.hidden**-0.5,  # wide enough that answers depend on the gist
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        llama = LlamaForCausalLM(config).eval()
    # one word fewer than rows: <GIST> takes the last one
    model = GistModel.from_base(llama, make_tokenizer(shape.vocab - 1))
    with torch.no_grad():
        silent = [model.gist_id, *range(len(SPECIALS))]
        llama.lm_head.weight[silent] = 0
    llama.to(device)
    return model


def make_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """One token a word."""
    words = (f"w{n}" for n in range(vocab - len(SPECIALS) - len(MARKS)))
    ids = {word: n for n, word in enumerate((*SPECIALS, *MARKS, *words))}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", ids["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


def make_instructions(model: GistModel, lengths: list[int], *, seed: int) -> list[str]:
    """Distinct instructions; each is as many tokens as asked, without its gist span."""
    return _texts(model, [n - INSTRUCTION_MARKS for n in lengths], f"instructions {seed}")


def make_inputs(model: GistModel, lengths: list[int], *, seed: int) -> list[str]:
    """Inputs; each is as many tokens as asked, its marks included."""
    return _texts(model, [n - INPUT_MARKS for n in lengths], f"inputs {seed}")


def _texts(model: GistModel, lengths: list[int], seed: str) -> list[str]:
    draw = random.Random(seed)
    words = sorted(w for w in model.tokenizer.get_vocab() if w[0] == "w")
    return [" ".join(draw.choices(words, k=n)) for n in lengths]


@dataclass
class StepClock(BaseStreamer):
    """Notes when `generate` hands out each token: [prompt, first token, second token, ...]."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def put(self, value: Tensor) -> None:
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def end(self) -> None:
        pass

    def step(self) -> Timing:
        """The middle decode step: from one token to the next, the first token's pass left out."""
        steps = (median(b - a for a, b in pairwise(t[1:])) for t in (self.wall, self.cpu))
        return Timing(*steps)

    def decode(self) -> Timing:
        """From the first token to the last."""
        return Timing(self.wall[-1] - self.wall[1], self.cpu[-1] - self.cpu[1])


@dataclass(frozen=True, slots=True)
class Request:
    """The four ways to answer the same inputs. Caches are built beforehand, as a server has them.

    Attributes:
        model, instructions, inputs: what is asked; one instruction for each input.
        gist, cache: the instructions' gists, and their full-prompt caches.
    """

    model: GistModel
    instructions: list[str]
    inputs: list[str]
    gist: Gist
    cache: Prefix

    @classmethod
    def make(cls, model: GistModel, instructions: list[str], inputs: list[str]) -> "Request":
        """Build both caches."""
        return cls(
            model,
            instructions,
            inputs,
            model.compress(instructions),
            model.cache_prompt(instructions),
        )

    def answer(self, mode: str, tokens: int, streamer: BaseStreamer | None = None) -> list[str]:
        """Greedy answers of exactly `tokens` tokens, in one of `MODES`."""
        prefix = {"gist": self.gist, "full-prompt cache": self.cache}.get(mode)
        instructions = self.instructions if mode == "no reuse" else None
        return self.model.generate(
            self.inputs,
            prefix,
            instructions=instructions,
            max_new_tokens=tokens,
            streamer=streamer,
        )

    def kept_bytes(self) -> dict[str, int]:
        """Bytes of activations kept for these instructions, in each mode."""
        kept = {"gist": self.gist.num_bytes, "full-prompt cache": self.cache.num_bytes}
        return {mode: kept.get(mode, 0) for mode in MODES}

    def check(self, tokens: int) -> dict[str, str]:
        """Assert that the modes answer rightly; returns what was compared.

        Raises:
            AssertionError: the full-prompt cache and no reuse differ, or an answer from a gist is
                not the greedy answer of the full pass under the gist mask.
        """
        plain = self.answer("no reuse", tokens)
        if self.answer("full-prompt cache", tokens) != plain:
            raise AssertionError("the full-prompt cache and no reuse give different tokens")
        answers = [self._ids(a) for a in self.answer("gist", tokens)]
        prompts = [
            self.model.encoder.prompt(instruction, text, self.gist.num_tokens)
            for instruction, text in zip(self.instructions, self.inputs, strict=True)
        ]
        ids, mask = self.model.pad([p + a for p, a in zip(prompts, answers, strict=True)])
        with torch.inference_mode():
            output: Any = self.model.adapter.forward(
                ids,
                mask,
                gist_id=self.model.gist_id,
                condition="gist",
                logits_to_keep=tokens + 1,
            )
        if output.logits[:, :-1].argmax(-1).tolist() != answers:
            raise AssertionError("the gist and the masked full pass give different tokens")
        error = float((self._first_logits() - output.logits[:, 0]).abs().max())
        if error > 1e-4:
            raise AssertionError(f"logits of the gist and the masked full pass differ by {error}")
        equal = f"{len(answers)} x {tokens} greedy tokens equal"
        return {
            "full-prompt cache = no reuse": equal,
            "gist = masked full pass": f"{equal}, first logits within {error:.1e}",
        }

    @torch.inference_mode()
    def _first_logits(self) -> Tensor:
        ids, mask = self.model.pad([self.model.encoder.input(text) for text in self.inputs])
        output: Any = self.model.adapter.read(
            ids, mask, self.gist, gist_id=self.model.gist_id, logits_to_keep=1
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _ids(self, answer: str) -> list[int]:
        ids: list[int] = self.model.tokenizer(answer, add_special_tokens=False)["input_ids"]
        return ids


MODES = ("no reuse", "full-prompt cache", "gist", "no prompt")
