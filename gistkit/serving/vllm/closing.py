"""An HTTP transport under which a cancelled task leaves no connection open.

httpcore2 closes connections that were idle for too long inside the next request, one after the
other. It shields that from anyio's way to cancel but not from `asyncio.Task.cancel`, after which
nobody knows of the rest any more. So each request, and each end of an answer, is a task of its own
here, cancelled in anyio's way and waited for.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import anyio
import httpx2

T = TypeVar("T")


class ClosingTransport(httpx2.AsyncHTTPTransport):
    """See above."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; its answer's body is yet to come."""
        begin = super().handle_async_request
        response = await _finished(lambda: begin(request), lambda late: late.aclose())
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Body(response.stream)
        return response


class _Body(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream) -> None:
        self._inner = inner

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._inner.__aiter__()

    async def aclose(self) -> None:
        await _finished(self._inner.aclose)


async def _finished(
    work: Callable[[], Awaitable[T]], undo: Callable[[T], Awaitable[None]] | None = None
) -> T:
    """What `work` returns; who is cancelled meanwhile waits for its end, and has it undone."""
    scope = anyio.CancelScope()
    found: list[T] = []

    async def run() -> None:
        with scope:
            found.append(await work())

    task = asyncio.create_task(run())
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        scope.cancel()
        await _ended(task)
        if found and undo is not None:
            await _ended(asyncio.ensure_future(undo(found[0])))
        raise
    return found[0]


async def _ended(task: "asyncio.Future[None]") -> None:
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task})
    if not task.cancelled():
        task.exception()  # nobody asks for it any more
