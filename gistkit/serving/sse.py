"""Answers as server-sent events: `data: {...}` and an empty line, `data: [DONE]` at the end."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import orjson
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from gistkit.serving.failures import Json, failure_of, internal
from gistkit.serving.logs import log
from gistkit.serving.replies import Reply

LAST = 5.0
"""Seconds that a client has to read the end of what took all the time there was."""

BREAKS = tuple((line.encode(), f"\\u{ord(line):04x}".encode()) for line in "\x85\u2028\u2029")
"""Characters that Python's `splitlines` takes for the end of a line, and with it many clients; JSON
can say them in other words."""

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Events(StreamingResponse):
    """The events of a reply; whatever ends them, the reply is closed."""

    media_type = "text/event-stream"

    def __init__(self, reply: Reply, chunks: AsyncIterator[Mapping[str, Any]]) -> None:
        super().__init__(_events(chunks), headers=HEADERS)
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        try:
            # one who does not read holds up the sending, whatever the engine does
            async with asyncio.timeout_at(self._reply.deadline + LAST):
                await super().__call__(scope, receive, send)
        finally:
            await self._reply.close()


async def _events(chunks: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield event(chunk)
    except Exception as error:
        # the status is sent already: the failure is an event, which OpenAI's clients raise
        failure = failure_of(error)
        if failure is None:
            log.exception("a stream failed")
            failure = internal()
        yield b"data: " + Json(failure.to_json()).body + b"\n\n"
        return
    yield b"data: [DONE]\n\n"


def event(chunk: Mapping[str, Any]) -> bytes:
    """One event, on one line whatever is in it."""
    data: bytes = orjson.dumps(chunk)
    for line, words in BREAKS:
        data = data.replace(line, words)
    return b"data: " + data + b"\n\n"
