"""One request on its way through the engine: begun, then told piece by piece or all at once.

    begin ── choose a gist, size, answer ──> Reply ── pieces ──> chat.py, completions.py

Answers to several prompts come through one stream: answer i of prompt p has the index p * n + i.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, TypeVar

from fastapi import Request

from gistkit.prompts import Turn
from gistkit.serving.engine import Finish, Prepared, Prompt, Sampling, StreamChunk, TokenLogprob
from gistkit.serving.failures import ApiError, GoneError
from gistkit.serving.logs import Note, note_of
from gistkit.serving.resolve_gist import Choice, choose
from gistkit.serving.schema import Asking
from gistkit.serving.service import Service

T = TypeVar("T")

NEVER = -9999.0
"""Stands for log-probabilities that JSON cannot say (OpenAI's number)."""


@dataclass(slots=True)
class Answer:
    """One whole answer."""

    text: str = ""
    finish: Finish | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Reply:
    """A request that the engine has begun to answer.

    Attributes:
        choice: what stands for its instruction.
        answers: how many there are.
        deadline: when it must have ended, in the event loop's time.
    """

    def __init__(
        self, service: Service, note: Note, choice: Choice, prepared: Sequence[Prepared], n: int
    ) -> None:
        self.choice, self.answers = choice, len(prepared) * n
        self._service, self._note, self._prepared, self._n = service, note, prepared, n
        self._tokens = 0
        self._source: AsyncGenerator[StreamChunk, None] | None = None
        self._first: StreamChunk | None = None
        self.deadline = 0.0

    async def begin(
        self, streams: Sequence[AsyncGenerator[StreamChunk, None]], deadline: float
    ) -> None:
        """Wait for the first piece: only then is it known whether there is an answer."""
        # one stream needs no task of its own
        self._source = _merged(streams, self._n) if len(streams) > 1 else streams[0]
        self.deadline = deadline
        try:
            self._first = await self._next()
        except BaseException:
            await self.close()
            raise
        self._service.metrics.first.observe(self._note.seconds)
        self._note.facts["first_token"] = round(self._note.seconds, 4)

    async def pieces(self) -> AsyncGenerator[StreamChunk, None]:
        """What the engine says, the first piece too.

        Raises:
            TimeoutError: it takes too long.
            GistkitError: as `Engine.answer`.
        """
        piece = self._first
        while piece is not None:
            self._tokens += piece.tokens
            yield piece
            piece = await self._next()

    async def whole(self) -> list[Answer]:
        """All answers, when they are there (raises as `pieces`)."""
        answers = [Answer() for _ in range(self.answers)]
        async with aclosing(self.pieces()) as pieces:
            async for piece in pieces:
                answer = answers[piece.index]
                answer.text += piece.text
                answer.logprobs += piece.logprobs
                answer.finish = piece.finish or answer.finish
        return answers

    async def close(self) -> None:
        """Cancel what is left, and count what there was. May be called again."""
        if self._source is None:
            return
        source, self._source = self._source, None
        await source.aclose()
        self._count()

    def usage(self) -> dict[str, Any]:
        """Tokens so far: OpenAI's fields, and what the gist replaced, and memory in bytes."""
        prompt = sum(p.prompt_tokens for p in self._prepared)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._tokens,
            "total_tokens": prompt + self._tokens,
            "prompt_tokens_details": {"cached_tokens": sum(p.num_cached for p in self._prepared)},
            "replaced_tokens": self.choice.replaced * len(self._prepared),
            "kv_bytes": self._n * sum(p.kv_bytes for p in self._prepared),
        }

    async def _next(self) -> StreamChunk | None:
        assert self._source is not None
        async with asyncio.timeout_at(self.deadline):
            return await anext(self._source, None)

    def _count(self) -> None:
        usage = self.usage()
        counts = {
            "prompt": usage["prompt_tokens"],
            "cached": usage["prompt_tokens_details"]["cached_tokens"],
            "replaced": usage["replaced_tokens"],
            "completion": usage["completion_tokens"],
        }
        for kind, number in counts.items():
            self._service.metrics.tokens.labels(kind).inc(number)
            self._note.facts[f"{kind}_tokens"] = number


async def begin(
    service: Service,
    request: Request,
    body: Asking,
    *,
    instruction: str,
    inputs: Sequence[Sequence[Turn] | str],
    header: str | None,
    max_tokens: int | None,
    fallback: int,
    logprobs: int | None,
) -> Reply:
    """Have a request answered; returns when the first piece is there.

    Args:
        header: X-Gist; the body's field goes before it.
        max_tokens: as asked; None: `fallback`, or what the model's positions leave.

    Raises:
        ApiError: not this model, or a gist that cannot be used and nothing else to read.
        TimeoutError, GistkitError: as `Reply.pieces`.
    """
    note = note_of(request.scope)
    if not instruction.strip():  # nothing to compress, and nothing to read
        instruction = ""
    deadline = asyncio.get_running_loop().time() + service.settings.timeout
    if body.model != service.engine.name:
        raise ApiError(
            404,
            f"no model {body.model!r} here; there is {service.engine.name!r}",
            code="model_not_found",
            param="model",
        )
    if service.settings.log_prompts:
        note.facts["prompt"] = {"instruction": instruction, "inputs": [_said(x) for x in inputs]}
    async with asyncio.timeout_at(deadline):
        choice = await choose(service, instruction, body.gist or header or "auto", body.gist_tokens)
    service.metrics.gists.labels(choice.status).inc()
    note.facts |= {"gist": choice.status, "gist_id": choice.id}
    n = body.n or 1
    sampling = Sampling(
        max_tokens=max_tokens or fallback,
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
        stop=body.stops,
        n=n,
        logprobs=logprobs,
    )
    prepared = [
        await service.engine.prepare(
            Prompt(instruction, input),
            choice.gist,
            sampling,
            client=note.client,
            gist_id=choice.id or "",
            fit=max_tokens is None,
        )
        for input in inputs
    ]
    reply = Reply(service, note, choice, prepared, n)
    streams = [service.engine.stream(one, whole=not body.stream) for one in prepared]
    await reply.begin(streams, deadline)
    return reply


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; when the client goes away first, it is cancelled (raises GoneError)."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise GoneError
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


def stamp() -> int:
    """Now, as OpenAI's `created`."""
    return int(time.time())


def finite(logprob: float) -> float:
    """A log-probability that JSON can say."""
    return logprob if isfinite(logprob) else NEVER


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _merged(
    streams: Sequence[AsyncIterator[StreamChunk]], n: int
) -> AsyncGenerator[StreamChunk, None]:
    """StreamChunks of all streams as they come; closing it closes them."""
    said: asyncio.Queue[tuple[int, StreamChunk | Exception | None]] = asyncio.Queue()

    async def listen(number: int, stream: Any) -> None:
        try:
            async with aclosing(stream):
                async for delta in stream:
                    said.put_nowait((number, delta))
            said.put_nowait((number, None))
        except Exception as error:
            said.put_nowait((number, error))

    listening = [asyncio.create_task(listen(i, stream)) for i, stream in enumerate(streams)]
    try:
        left = len(streams)
        while left:
            number, one = await said.get()
            if isinstance(one, Exception):
                raise one
            if one is None:
                left -= 1
            else:
                yield replace(one, index=number * n + one.index) if number else one
    finally:
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)


def _said(input: Sequence[Turn] | str) -> Any:
    return input if isinstance(input, str) else [(turn.role, turn.text) for turn in input]
