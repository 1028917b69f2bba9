"""A request inside the transformers engine, and its answers as they grow.

    Request ── n x ──> Answer.take(token) ──> Delta

Knows nothing about batches or threads: who calls what from where is the worker's business.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from math import inf
from random import Random

from gistkit.gist import Gist
from gistkit.models.streaming import Growing
from gistkit.serving.engine import Delta, Finish, Sampling, TokenLogprob

Decode = Callable[[list[int]], str]

PIECE_SECONDS = 0.03
"""Text that comes sooner than this after the last piece waits for the next one. Every piece costs
the event loop and the client far more than a token costs a small model, and nobody reads so fast;
a model that takes longer for a token has each of its tokens told at once."""


@dataclass(eq=False, slots=True)
class Request:
    """One prompt to be answered n times.

    Attributes:
        ids: of the prompt, L; behind the gist where there is one.
        gist: what the prompt stands behind, one row.
        sampling: how to answer.
        client: whose it is.
        out: where answers go: deltas, or the error that ends the request.
        cancelled: nobody listens any more.
    """

    ids: list[int]
    gist: Gist | None
    sampling: Sampling
    client: str
    out: "asyncio.Queue[Delta | Exception]" = field(default_factory=asyncio.Queue)
    cancelled: bool = False

    @property
    def kept(self) -> int:
        """k, or 0 without a gist."""
        return 0 if self.gist is None else self.gist.num_tokens

    @property
    def columns(self) -> int:
        """Tokens of one row at the most: gist, prompt and answer."""
        return self.kept + len(self.ids) + self.sampling.max_tokens


class Answer:
    """One of the n answers to a request: a row of a batch.

    Args:
        request: whose.
        index: which of the n.
        decode: ids to text, without special tokens.
        name: one id to its text, special or not.
        ends: ids that end an answer.

    Attributes:
        chance: the row's own random numbers.
        done: whether the last delta was made.
    """

    def __init__(
        self, request: Request, index: int, decode: Decode, name: Decode, ends: Collection[int]
    ) -> None:
        self._held, self._told_at = "", -inf
        self.request, self.index, self.done = request, index, False
        seed = request.sampling.seed
        self.chance = Random() if seed is None else Random(f"{seed} {index}")
        self._text = Growing(decode, request.sampling.stop)
        self._name, self._ends = name, ends
        self._drawn = self._told = 0
        self._logprobs: list[TokenLogprob] = []

    def take(self, token: int, likely: Sequence[tuple[int, float]] = ()) -> Delta | None:
        """Append a token; returns what there is to say, None while all is held back.

        The first text is told at once, and what follows at most every `PIECE_SECONDS`.

        An end token counts as drawn, but is no text and has no log-probability.

        Args:
            likely: the token's id and log-probability, then those of the likeliest; or nothing.
        """
        self._drawn += 1
        finish: Finish | None = None
        if token in self._ends:
            finish = "stop"
        else:
            self._held += self._text.push(token)
            self._note(likely)
            if self._text.stopped:
                finish = "stop"
            elif self._drawn == self.request.sampling.max_tokens:
                finish = "length"
        now = time.monotonic()
        if finish is not None:
            self.done = True
            self._held += self._text.rest()
        elif not self._held or now - self._told_at < PIECE_SECONDS:
            return None
        new, logprobs = self._drawn - self._told, tuple(self._logprobs)
        delta = Delta(self.index, self._held, new, logprobs, finish)
        self._told, self._told_at, self._held, self._logprobs = self._drawn, now, "", []
        return delta

    def _note(self, likely: Sequence[tuple[int, float]]) -> None:
        if likely:
            (token, logprob), *best = likely
            top = tuple((self._name([id]), value) for id, value in best)
            self._logprobs.append(TokenLogprob(self._name([token]), logprob, top))
