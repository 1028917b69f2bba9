"""A request on its way through the engine, whole or streamed.

    start ── resolve the gist, prepare, stream ──> Completion ── chunks ──> EventStream or choices

The answers to several prompts share one stream: answer i of prompt p has the index p * n + i.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar
from uuid import uuid4

import orjson
from fastapi import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from gistkit.serving.api_errors import ApiError, GoneError, Json, api_error
from gistkit.serving.engine import Prepared, Prompt, Sampling, StreamChunk
from gistkit.serving.middleware import Record
from gistkit.serving.schema import ChatRequest, CompletionRequest
from gistkit.serving.service import ResolvedGist, Service

GRACE = 5.0
"""Seconds beyond the deadline in which a client can read the end of a stream."""

BREAKS = tuple((line.encode(), f"\\u{ord(line):04x}".encode()) for line in "\x85\u2028\u2029")
"""Characters that Python's `splitlines`, and so many clients, take for the end of a line, and how
JSON can escape them."""

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

T = TypeVar("T")
Event = Mapping[str, Any]


class Completion:
    """A request that the engine has begun to answer; `deadline` is in the event loop's time."""

    def __init__(
        self,
        service: Service,
        record: Record,
        gist: ResolvedGist,
        prepared: Sequence[Prepared],
        *,
        whole: bool,
        deadline: float,
    ) -> None:
        self._n = prepared[0].sampling.n
        self.gist, self.num_choices, self.deadline = gist, len(prepared) * self._n, deadline
        self.model = service.engine.name
        self._metrics, self._record, self._prepared = service.metrics, record, prepared
        self._tokens = 0
        self._first: StreamChunk | None = None
        streams = [service.engine.stream(prompt, whole=whole) for prompt in prepared]
        # one stream needs no task of its own
        source = _merge(streams, self._n) if len(streams) > 1 else streams[0]
        self._source: AsyncGenerator[StreamChunk, None] | None = source

    async def begin(self) -> None:
        """Wait for the first chunk: only then is it known whether there is an answer."""
        try:
            self._first = await self.next_chunk()
        except BaseException:
            await self.close()
            raise
        seconds = self._record.seconds
        self._metrics.first_token.observe(seconds)
        self._record.facts["first_token"] = round(seconds, 4)

    async def next_chunk(self) -> StreamChunk | None:
        """The next chunk of any answer; None: the end (raises as `Engine.stream`; TimeoutError)."""
        chunk, self._first = self._first, None
        if chunk is None:
            assert self._source is not None
            async with asyncio.timeout_at(self.deadline):
                chunk = await anext(self._source, None)
            if chunk is not None:
                self._tokens += chunk.tokens
        return chunk

    async def choices(self) -> list[StreamChunk]:
        """All answers, each as one chunk, once they are complete (raises as `next_chunk`)."""
        choices: dict[int, StreamChunk] = {}
        while (chunk := await self.next_chunk()) is not None:
            before = choices.get(chunk.index)
            choices[chunk.index] = chunk if before is None else before + chunk
        return [choices[index] for index in sorted(choices)]

    async def close(self) -> None:
        """Cancel what is left, and count the tokens. May be called again."""
        if self._source is None:
            return
        source, self._source = self._source, None
        await source.aclose()
        usage = self.usage()
        counts = {
            "prompt": usage["prompt_tokens"],
            "cached": usage["prompt_tokens_details"]["cached_tokens"],
            "replaced": usage["replaced_tokens"],
            "completion": usage["completion_tokens"],
        }
        for kind, number in counts.items():
            self._metrics.tokens.labels(kind).inc(number)
            self._record.facts[f"{kind}_tokens"] = number

    def usage(self) -> dict[str, Any]:
        """Tokens so far: OpenAI's fields, what the gist replaced, and memory in bytes."""
        prompt = sum(p.prompt_tokens for p in self._prepared)
        replaced = 0 if self.gist.gist is None else self.gist.instruction_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._tokens,
            "total_tokens": prompt + self._tokens,
            "prompt_tokens_details": {"cached_tokens": sum(p.num_cached for p in self._prepared)},
            "replaced_tokens": replaced * len(self._prepared),
            "kv_bytes": self._n * sum(p.kv_bytes for p in self._prepared),
        }


async def start(
    request: Request, body: ChatRequest | CompletionRequest, x_gist: str | None
) -> Completion:
    """Begin to answer a request; returns when the first chunk is there.

    Args:
        x_gist: the header; the field of the body takes precedence.

    Raises:
        ApiError: another model, or an unusable gist without an instruction to read instead.
        TimeoutError, GistkitError: as `Completion.next_chunk`.
    """
    service: Service = request.app.state.service
    engine, record = service.engine, Record.of(request.scope)
    deadline = asyncio.get_running_loop().time() + service.settings.timeout
    instruction, inputs, token_limit = body.instruction, body.inputs, body.token_limit
    if not instruction.strip():
        instruction = ""
    if body.model != engine.name:
        raise ApiError(
            404,
            f"no model {body.model!r} here; there is {engine.name!r}",
            code="model_not_found",
            param="model",
        )
    if service.settings.log_prompts:
        texts = [i if isinstance(i, str) else [(t.role, t.text) for t in i] for i in inputs]
        record.facts["prompt"] = {"instruction": instruction, "inputs": texts}
    wanted = body.gist or x_gist or "auto"
    async with asyncio.timeout_at(deadline):
        gist = await service.resolve_gist(instruction, wanted, body.gist_tokens)
    service.metrics.gists.labels(gist.status).inc()
    record.facts |= {"gist": gist.status, "gist_id": gist.id}
    sampling = Sampling(
        max_tokens=token_limit or body.default_max_tokens,
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
        stop=body.stops,
        n=body.n or 1,
        logprobs=body.num_logprobs,
    )
    prepared = [
        await engine.prepare(
            Prompt(instruction, input),
            gist.gist,
            sampling,
            client=record.client,
            gist_id=gist.id or "",
            fit=token_limit is None,
        )
        for input in inputs
    ]
    completion = Completion(
        service, record, gist, prepared, whole=not body.stream, deadline=deadline
    )
    await completion.begin()
    return completion


class Format(ABC):
    """How answers are written: as a chat, or as plain text; `prefix` opens the response's id."""

    prefix: str
    object: str
    event_object: str

    def __init__(self, completion: Completion, body: ChatRequest | CompletionRequest) -> None:
        self.completion = completion
        self.logprobs, self._include_usage = body.num_logprobs is not None, body.include_usage
        self._head = {
            "id": f"{self.prefix}-{uuid4().hex}",
            "created": int(time.time()),
            "model": completion.model,
            "system_fingerprint": None,
        }
        self.event_head: Event = {**self._head, "object": self.event_object}
        if body.include_usage:
            self.event_head = {**self.event_head, "usage": None}

    @abstractmethod
    def choice(self, answer: StreamChunk) -> dict[str, Any]: ...

    def first(self) -> Iterable[Event]:
        """Events before the first chunk."""
        return ()

    @abstractmethod
    def chunk(self, chunk: StreamChunk) -> Iterable[Event]: ...

    def last(self) -> Iterable[Event]:
        """Events after the last chunk."""
        if not self._include_usage:
            return ()
        return ({**self.event_head, "choices": [], **self._totals()},)

    def response(self, answers: Sequence[StreamChunk]) -> dict[str, Any]:
        choices = [self.choice(answer) for answer in answers]
        return {**self._head, "object": self.object, "choices": choices, **self._totals()}

    def _totals(self) -> dict[str, Any]:
        return {"usage": self.completion.usage(), "gist": self.completion.gist.to_json()}


async def respond(
    request: Request,
    body: ChatRequest | CompletionRequest,
    x_gist: str | None,
    format_class: type[Format],
) -> Json | StreamingResponse:
    """The response to a request, whole or as server-sent events (raises as `start`)."""
    completion = await unless_gone(request, start(request, body, x_gist))
    format = format_class(completion, body)
    if body.stream:
        return EventStream(format)
    try:
        answers = await unless_gone(request, completion.choices())
    finally:
        await completion.close()
    return Json(format.response(answers))


class EventStream(StreamingResponse):
    """Server-sent events: `data: {...}` and an empty line each, `data: [DONE]` at the end."""

    media_type = "text/event-stream"

    def __init__(self, format: Format) -> None:
        super().__init__(self._events(format), headers=HEADERS)
        self._completion = format.completion

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            # a client that does not read blocks the sending, whatever the engine does
            async with asyncio.timeout_at(self._completion.deadline + GRACE):
                await super().__call__(scope, receive, send)
        finally:
            await self._completion.close()

    async def _events(self, format: Format) -> AsyncIterator[bytes]:
        try:
            if first := encode(format.first()):
                yield first
            while (chunk := await self._completion.next_chunk()) is not None:
                if events := encode(format.chunk(chunk)):
                    yield events
            yield encode(format.last()) + b"data: [DONE]\n\n"
        except Exception as error:
            # the status is already sent: the error is an event, which OpenAI's clients raise
            yield b"data: " + Json(api_error(error).to_json()).body + b"\n\n"


def encode(events: Iterable[Event]) -> bytes:
    """Events, each on one line whatever it contains."""
    lines = b""
    for event in events:
        data: bytes = orjson.dumps(event)
        for line, escaped in BREAKS:
            data = data.replace(line, escaped)
        lines += b"data: " + data + b"\n\n"
    return lines


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; it is cancelled if the client leaves first (raises GoneError)."""
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


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _merge(
    streams: Sequence[AsyncGenerator[StreamChunk, None]], n: int
) -> AsyncGenerator[StreamChunk, None]:
    """Chunks of all streams as they come; closing it closes them."""
    queue: asyncio.Queue[tuple[int, StreamChunk | Exception | None]] = asyncio.Queue()

    async def read(number: int, stream: AsyncGenerator[StreamChunk, None]) -> None:
        try:
            async with aclosing(stream):
                async for chunk in stream:
                    queue.put_nowait((number, chunk))
            queue.put_nowait((number, None))
        except Exception as error:
            queue.put_nowait((number, error))

    readers = [asyncio.create_task(read(i, stream)) for i, stream in enumerate(streams)]
    try:
        left = len(streams)
        while left:
            number, chunk = await queue.get()
            if isinstance(chunk, Exception):
                raise chunk
            if chunk is None:
                left -= 1
            else:
                yield replace(chunk, index=number * n + chunk.index) if number else chunk
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
