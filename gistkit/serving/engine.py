"""The interface between the HTTP server and an engine, and what all engines share.

    prepared = await engine.prepare(prompt, gist, sampling)    # token ids, checked once
    async for chunk in engine.stream(prepared): ...            # StreamChunk

The transformers engine runs in this process; the vLLM engine forwards to vLLM servers. Engines take
text and return text, and all their methods are called on one event loop.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeVar

from gistkit.errors import OptionError, PromptError
from gistkit.gist import Gist
from gistkit.model import GistModel
from gistkit.prompts import Turn

Finish = Literal["stop", "length"]
"""Why an answer ended: an end token or a stop string, or `max_tokens`."""

LONG_TEXT = 16_000
"""Characters. Tokenizing more takes milliseconds, so it happens in a thread."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to sample the answers to one prompt.

    Attributes:
        temperature: 0 is greedy.
        seed: the same seed gives the same answer, whatever else is in the batch.
        stop: strings that end the answer and are not part of it.
        logprobs: number of likeliest tokens to report with each sampled one; None: no
            log-probabilities.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """The text of a request.

    Attributes:
        instruction: the text before the input, "" for none. Ignored where a gist replaces it.
        turns: the conversation, at least one turn; or one plain input.
    """

    instruction: str
    turns: Sequence[Turn] | str

    @property
    def characters(self) -> int:
        turns = self.turns
        texts = [turns] if isinstance(turns, str) else [turn.text for turn in turns]
        return len(self.instruction) + sum(map(len, texts))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Prepared:
    """A prompt that was tokenized and checked, ready for `Engine.stream`.

    Attributes:
        ids: tokens of the prompt, L; they follow the gist where there is one.
        gist: replaces the instruction; one row.
        instruction: read in full; "" where there is none, or a gist.
        client: requests of different clients take turns in the queue.
        num_cached: tokens whose activations come with the gist.
        prompt_tokens: gist tokens and `ids` together.
        total_tokens: prompt and longest possible answer together.
        kv_bytes: keys and values of one answer at its longest.
    """

    ids: list[int]
    gist: Gist | None
    gist_id: str
    instruction: str
    sampling: Sampling
    client: str
    num_cached: int
    prompt_tokens: int
    total_tokens: int
    kv_bytes: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability in nats at temperature 1; `top` has the likeliest, best first."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class StreamChunk:
    """The next part of an answer.

    Attributes:
        index: which of the n answers.
        text: new text. Stop strings, and text that may still become one, are held back.
        tokens: tokens sampled since the last chunk; an end token counts.
        logprobs: of these tokens, if requested; an end token has none.
        finish: set on the last chunk of this answer.
    """

    index: int
    text: str
    tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None

    def __add__(self, later: "StreamChunk") -> "StreamChunk":
        """Both as one chunk; `later` is the next one of the same answer."""
        return StreamChunk(
            self.index,
            self.text + later.text,
            self.tokens + later.tokens,
            self.logprobs + later.logprobs,
            later.finish,
        )


class Engine(ABC):
    """Compresses instructions and answers prompts.

    Args:
        model: its tokenizer, templates and fingerprint are used.
        name: the model's id for clients.
        max_length: tokens of a prompt and its answer together, unless the model's positions are
            fewer; None: no other limit.

    Attributes:
        trained: the supported numbers of gist tokens; the first is the default.
    """

    kv_bytes_per_token = 0

    def __init__(self, model: GistModel, *, name: str, max_length: int | None) -> None:
        limits = [n for n in (max_length, model.adapter.max_positions) if n is not None]
        self.max_length = min(limits, default=None)
        self.model, self.name = model, name
        self.trained = model.config.num_gist_tokens or (model.config.default_k,)

    @abstractmethod
    async def start(self) -> None:
        """Get ready; called once, before anything else."""

    @abstractmethod
    async def stop(self) -> None:
        """End all requests and release all resources."""

    @abstractmethod
    async def compress(
        self, instruction: str, num_gist_tokens: int | None = None
    ) -> tuple[str, Gist]:
        """Id and gist of an instruction: from the store, or compressed once and stored.

        Raises:
            PromptError: the instruction cannot be compressed (empty, too long, holds `<GIST>`).
            OptionError: a k the model was not trained for.
            BusyError: too many instructions are waiting.
        """

    @abstractmethod
    async def measure(
        self, gist_id: str, instruction: str, probes: Sequence[str]
    ) -> Mapping[str, object]:
        """Fidelity of a stored gist on `probes` (`Fidelity.to_json`), saved with the gist."""

    @abstractmethod
    def stream(
        self, prepared: Prepared, *, whole: bool = False
    ) -> AsyncGenerator[StreamChunk, None]:
        """The answers in chunks, as they are generated; closing the iterator cancels the rest.

        Args:
            whole: the caller shows nothing before the end, so a failed answer may be restarted.

        Raises (at the first chunk):
            BusyError: the queue is full, or memory ran out.
            UnavailableError: the engine stopped, or failed at this request.
        """

    @abstractmethod
    def stats(self) -> Mapping[str, float]:
        """`running` and `waiting` requests, `kv_bytes` reserved of `kv_limit`; `steps`, `tokens`.

        The last two count from the start.
        """

    @property
    @abstractmethod
    def healthy(self) -> bool:
        """False when the engine cannot answer any more; the server then reports "not ready"."""

    @cached_property
    def fingerprint(self) -> str:
        """The model's; cached, since a served model's weights do not change."""
        return self.model.fingerprint

    async def prepare(
        self,
        prompt: Prompt,
        gist: Gist | None,
        sampling: Sampling,
        *,
        client: str = "",
        gist_id: str = "",
        fit: bool = False,
    ) -> Prepared:
        """Tokenize and check a prompt.

        Args:
            gist: replaces the instruction; None: read the instruction in full.
            fit: lower `max_tokens` to what fits, instead of refusing the prompt.

        Raises:
            PromptError: not a valid prompt, too long, or more than the memory can ever hold.
            OptionError: an invalid sampling option, or too many answers at once.
            GistMismatchError: another model's gist.
        """
        if sampling.max_tokens < 1 or sampling.n < 1:
            raise OptionError("max_tokens and n must be at least 1")
        if sampling.temperature < 0 or not 0 < sampling.top_p <= 1:
            raise OptionError("temperature must be 0 or more, top_p in (0, 1]")
        num_cached = 0
        if gist is not None:
            gist.check(self.fingerprint, self.model.config.template, 1)
            num_cached = gist.num_tokens
        instruction = prompt.instruction if gist is None else ""
        ids = await in_thread_if_long(
            prompt.characters, lambda: self._encode(instruction, prompt.turns)
        )
        prompt_tokens = num_cached + len(ids)
        if fit and self.max_length is not None:
            room = max(1, self.max_length - prompt_tokens)
            sampling = replace(sampling, max_tokens=min(sampling.max_tokens, room))
        total_tokens = prompt_tokens + sampling.max_tokens
        prepared = Prepared(
            ids=ids,
            gist=gist,
            gist_id=gist_id,
            instruction=instruction,
            sampling=sampling,
            client=client,
            num_cached=num_cached,
            prompt_tokens=prompt_tokens,
            total_tokens=total_tokens,
            kv_bytes=total_tokens * self.kv_bytes_per_token,
        )
        self.check_prepared(prepared)
        return prepared

    def check_prepared(self, prepared: Prepared) -> None:
        """Raise PromptError or OptionError for a prompt that this engine can never answer."""
        if self.max_length is not None and prepared.total_tokens > self.max_length:
            raise PromptError(
                f"{prepared.total_tokens} tokens (prompt and answer) are more than the "
                f"{self.max_length} allowed here; shorten the prompt or lower max_tokens"
            )

    def _encode(self, instruction: str, turns: Sequence[Turn] | str) -> list[int]:
        encoder = self.model.encoder
        if not instruction:
            return encoder.input(turns)
        return encoder.prompt(instruction, turns, self.model.config.default_k)


def check_k(model: GistModel, k: int | None) -> int:
    """The number of gist tokens, by default the model's (raises OptionError)."""
    trained = model.config.num_gist_tokens
    if k is not None and trained and k not in trained:
        numbers = ", ".join(map(str, trained))
        raise OptionError(f"this model was trained for {numbers} gist tokens, not {k}; choose one")
    return model.check_k(k)


async def in_thread_if_long(characters: int, work: Callable[[], T]) -> T:
    """Run `work` on a text: in a thread if it is long, so that the event loop stays free."""
    return await asyncio.to_thread(work) if characters > LONG_TEXT else work()
