"""What is measured: a random LLaMA of a given shape, and texts of an exact number of tokens.

Speed does not depend on what the weights say. A word is a token, so lengths are exact through the
public, text-only interface; and no special token is ever predicted (their output rows are zero, a
logit that is never the largest), so every answer has exactly the requested number of tokens.
"""

import random
import time
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.generation.streamers import BaseStreamer

from gistkit import Gist, GistModel, Prefix
from gistkit.baselines import CACHED, FULL, GIST, MODES, answer
from gistkit.benchmark.prompts import Prompts
from gistkit.timing import Timing

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
"""Quick enough to try the experiments themselves."""


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
    """Distinct instructions; each has the requested number of tokens, without its gist span."""
    return _texts(model, [n - INSTRUCTION_MARKS for n in lengths], f"instructions {seed}")


def make_inputs(model: GistModel, lengths: list[int], *, seed: int) -> list[str]:
    """Inputs; each has the requested number of tokens, its marks included."""
    return _texts(model, [n - INPUT_MARKS for n in lengths], f"inputs {seed}")


def _texts(model: GistModel, lengths: list[int], seed: str) -> list[str]:
    rng = random.Random(seed)
    words = sorted(w for w in model.tokenizer.get_vocab() if w[0] == "w")
    return [" ".join(rng.choices(words, k=n)) for n in lengths]


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
    """The same inputs in the four modes. What is kept is made before, as a server has it.

    Attributes:
        model, instructions, inputs: one instruction for each input.
        gist, cache: the instructions' gists, and the caches of their full prompts.
    """

    model: GistModel
    instructions: list[str]
    inputs: list[str]
    gist: Gist
    cache: Prefix

    @classmethod
    def make(cls, model: GistModel, instructions: list[str], inputs: list[str]) -> "Request":
        """Make what is kept."""
        gist, cache = model.compress(instructions), model.cache_prompt(instructions)
        return cls(model, instructions, inputs, gist, cache)

    def answer(self, mode: str, tokens: int, streamer: BaseStreamer | None = None) -> list[str]:
        """Greedy answers of exactly `tokens` tokens, in one of the modes."""
        prefix = {GIST: self.gist, CACHED: self.cache}.get(mode)
        return answer(
            self.model,
            mode,
            self.instructions,
            self.inputs,
            prefix,
            max_new_tokens=tokens,
            streamer=streamer,
        )

    def kept_bytes(self) -> dict[str, int]:
        """Bytes of activations kept for these instructions, in each mode."""
        kept = {GIST: self.gist.num_bytes, CACHED: self.cache.num_bytes}
        return {mode: kept.get(mode, 0) for mode in MODES}

    def check(self, tokens: int) -> dict[str, str]:
        """Assert that the modes answer rightly; returns what was compared.

        Raises:
            AssertionError: the cached and the full prompt differ, or an answer from a gist is not
                the greedy answer of the full pass under the gist mask.
        """
        if self.answer(CACHED, tokens) != self.answer(FULL, tokens):
            raise AssertionError("the cached and the full prompt give different tokens")
        answers = [self._ids(text) for text in self.answer(GIST, tokens)]
        encoder, k = self.model.encoder, self.gist.num_tokens
        prompts = Prompts(
            self.model,
            [encoder.instruction(text, k) for text in self.instructions],
            [encoder.input(text) for text in self.inputs],
            k,
        )
        logits = prompts.full_pass(GIST, torch.tensor(answers, device=self.model.device))
        if logits.argmax(-1).tolist() != answers:
            raise AssertionError("the gist and the masked full pass give different tokens")
        first = prompts.read(self.gist).logits[:, -1]
        error = float((first - logits[:, 0]).abs().max())
        if error > 1e-4:
            raise AssertionError(f"logits of the gist and the masked full pass differ by {error}")
        equal = f"{len(answers)} x {tokens} greedy tokens equal"
        return {
            f"{CACHED} = {FULL}": equal,
            "gist = masked full pass": f"{equal}, first logits within {error:.1e}",
        }

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.model.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
