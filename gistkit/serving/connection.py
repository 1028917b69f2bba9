"""One client's connection: uvicorn's, which gives up on clients that do not say what they want.

uvicorn alone waits without end for the first request of a connection, and for the rest of a head or
of a body that was refused; enough such connections would take all of a process's descriptors. And
with httptools, which takes half the time of h11, heads may have any length.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 30.0
"""A request's head must be there after so long."""

MAX_HEAD = 2**16
"""Bytes that a connection may send outside a request: a head, or what follows a refused body."""


class Connection(HttpToolsProtocol):
    """See above. Requests under way have limits of their own (`Door`, `--timeout`)."""

    _giving_up: asyncio.TimerHandle | None = None
    _outside = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take in more; what belongs to no request yet does not prolong the wait."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait_no_longer()
            self._outside = 0
            return
        self._outside += len(data)
        if self._outside > MAX_HEAD:
            self.transport.close()
        elif self._giving_up is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timer."""
        self._wait_no_longer()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._giving_up = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _wait_no_longer(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None
