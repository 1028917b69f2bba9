"""Answers being generated: the next token of each row, its log-probabilities and its text.

Each row has its own random numbers in [0, 1), and which token a number selects depends on the row's
logits alone. So the same seed gives the same answer, whatever else is in the batch.

Shapes: B rows, V vocabulary, R rows that are sampled (not greedy).
"""

import time
from collections.abc import Collection
from collections.abc import Sequence as Seq
from functools import partial
from math import inf
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from gistkit.models.streaming import Growing
from gistkit.serving.engine import Finish, StreamChunk, TokenLogprob
from gistkit.serving.scheduler import Request

MIN_TEMPERATURE = 1e-4  # dividing logits by less overflows
MAX_RANDOM = 1 - 2**-22  # float32 does not round it up to 1

CHUNK_SECONDS = 0.03
"""Text that comes sooner than this after the last chunk waits for the next one. A chunk costs the
event loop and the client far more than a token costs a small model, and people do not read so fast.
A model that takes longer for a token has each of its tokens sent at once."""


class Sequence:
    """One of the n answers to a request: a row of a batch; `done` once its last chunk was made."""

    def __init__(
        self,
        request: Request,
        index: int,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: Collection[int],
    ) -> None:
        self.request, self.index, self.done = request, index, False
        self.sampling = sampling = request.prepared.sampling
        seeded = sampling.seed is not None
        self.random = Random(f"{sampling.seed} {index}") if seeded else Random()
        self._decode, self._end_ids = tokenizer.decode, end_ids
        decode: Any = partial(tokenizer.decode, skip_special_tokens=True)
        self._text = Growing(decode, sampling.stop)
        self._pending, self._sent_at = "", -inf
        self._sampled = self._sent = 0
        self._logprobs: list[TokenLogprob] = []

    def append(self, token: int, likeliest: Seq[tuple[int, float]] = ()) -> StreamChunk | None:
        """Append a token; returns the next chunk, None while all text is held back.

        The first text is sent at once, and more at most every `CHUNK_SECONDS`. An end token counts
        as a token, but is no text and has no log-probability.

        Args:
            likeliest: the token's id and log-probability, then those of the likeliest; or nothing.
        """
        self._sampled += 1
        finish: Finish | None = None
        if token in self._end_ids:
            finish = "stop"
        else:
            self._pending += self._text.push(token)
            if likeliest:
                (token, logprob), *best = likeliest
                top = tuple((self._name(id), value) for id, value in best)
                self._logprobs.append(TokenLogprob(self._name(token), logprob, top))
            if self._text.stopped:
                finish = "stop"
            elif self._sampled == self.sampling.max_tokens:
                finish = "length"
        now = time.monotonic()
        if finish is not None:
            self.done = True
            self._pending += self._text.rest()
        elif not self._pending or now - self._sent_at < CHUNK_SECONDS:
            return None
        new, logprobs = self._sampled - self._sent, tuple(self._logprobs)
        chunk = StreamChunk(self.index, self._pending, new, logprobs, finish)
        self._sent, self._sent_at, self._pending, self._logprobs = self._sampled, now, "", []
        return chunk

    def _name(self, id: int) -> str:
        return str(self._decode([id]))


def sample(logits: Tensor, sequences: Seq[Sequence]) -> tuple[list[int], list[StreamChunk | None]]:
    """The next token of each of B sequences from `logits` [B, V], and the chunks they make."""
    tokens = _sample(logits, sequences)
    likeliest: dict[int, list[tuple[int, float]]] = {}
    wanted = {row: s.sampling.logprobs for row, s in enumerate(sequences)}
    counts = {row: count for row, count in wanted.items() if count is not None}
    if counts:
        rows = list(counts)
        found = _likeliest(logits[rows], [tokens[row] for row in rows], max(counts.values()))
        likeliest = {row: best[: 1 + counts[row]] for row, best in zip(rows, found, strict=True)}
    chunks = [
        sequence.append(token, likeliest.get(row, ()))
        for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True))
    ]
    return tokens, chunks


def _sample(logits: Tensor, sequences: Seq[Sequence]) -> list[int]:
    """One token for each row; greedy rows leave their random numbers alone."""
    tokens = logits.argmax(-1)
    sampled = [row for row, s in enumerate(sequences) if s.sampling.temperature > 0]
    if sampled:
        own = [sequences[row] for row in sampled]
        rows = torch.tensor(sampled, device=logits.device)
        random = logits.new_tensor(
            [min(s.random.random(), MAX_RANDOM) for s in own], dtype=torch.float32
        )
        temperature = random.new_tensor([max(s.sampling.temperature, MIN_TEMPERATURE) for s in own])
        top_p = random.new_tensor([s.sampling.top_p for s in own])
        tokens[rows] = _select(logits[rows].float() / temperature[:, None], top_p, random)
    found: list[int] = tokens.tolist()
    return found


def _select(logits: Tensor, top_p: Tensor, random: Tensor) -> Tensor:
    """Tokens [R] at the random numbers [R], among the likeliest that together have `top_p` [R]."""
    probabilities = logits.softmax(-1)
    if bool((top_p < 1).any()):
        ordered, ids = probabilities.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        before[:, 0] = -1  # the likeliest token stays
        out = torch.zeros_like(before, dtype=torch.bool)
        out.scatter_(-1, ids, before >= top_p[:, None])
        probabilities = probabilities.masked_fill(out, 0)
    # in the order of ids: the order of nearly equal probabilities varies with the batch
    up_to = probabilities.cumsum(-1)
    return torch.searchsorted(up_to, random[:, None] * up_to[:, -1:], right=True)[:, 0]


def _likeliest(logits: Tensor, tokens: Seq[int], most: int) -> list[list[tuple[int, float]]]:
    """For each row of `logits` [B, V]: its token, then the `most` likeliest, as ids and nats."""
    logs = logits.float().log_softmax(-1)
    own = logs.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])
    best = logs.topk(min(most, logs.shape[-1]), dim=-1)
    ids = best.indices.tolist()
    values = torch.cat([own, best.values], dim=-1).tolist()
    return [
        list(zip([token, *row], numbers, strict=True))
        for token, row, numbers in zip(tokens, ids, values, strict=True)
    ]
