"""Running a server: its socket, its connections, its signals.

SIGTERM or Ctrl-C: new requests get 503, running ones continue for up to `drain_seconds`. A second
signal ends the server at once.
"""

import asyncio
import gc
import socket
import sys
import time
from contextlib import ExitStack
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gistkit.errors import OptionError
from gistkit.serving.observability import log, log_loop_error
from gistkit.serving.service import Service

CLOSE_SECONDS = 2  # for connections to close, once nothing is running

SWITCH_INTERVAL = 1e-4
"""Seconds after which a thread yields the interpreter. The decoding thread needs it after every
operation; at Python's 5 ms it waits whenever the event loop is busy."""

HEAD_SECONDS = 30.0
"""Time for the head of a request to arrive."""

MAX_HEAD = 2**16
"""Bytes that a connection may send outside a request: a head, or what follows a refused body."""


class Connection(HttpToolsProtocol):
    """uvicorn's connection, closed if the client does not complete a request.

    uvicorn alone waits forever for the first request of a connection, and for the rest of a head or
    of a refused body; enough such connections would use up the process's file descriptors. And with
    httptools, which takes half the time of h11, heads may have any length. Requests in progress
    have limits of their own (`BODY_SECONDS`, `Settings.timeout`).
    """

    _timer: asyncio.TimerHandle | None = None
    _outside = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Bytes outside a request do not extend the wait."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
            self._outside = 0
            return
        self._outside += len(data)
        if self._outside > MAX_HEAD:
            self.transport.close()
        elif self._timer is None:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Server(uvicorn.Server):
    """uvicorn's server, which drains before it ends."""

    def __init__(self, app: FastAPI) -> None:
        config = uvicorn.Config(
            app,
            lifespan="on",
            ws="none",
            http=Connection,
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=CLOSE_SECONDS,
            proxy_headers=False,
        )
        super().__init__(config)
        self._service: Service = app.state.service
        self._drained_by: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(log_loop_error)
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # libraries and model stay: no full collection need look at them again
        assert sockets
        host, port = sockets[0].getsockname()[:2]
        name = f"[{host}]" if ":" in host else host
        facts = {"url": f"http://{name}:{port}", "model": self._service.engine.name}
        log.info("listening", extra={"facts": facts})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drained_by is None:
            self._service.draining = True
            self._drained_by = time.monotonic() + self._service.settings.drain_seconds
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to end; called ten times a second."""
        if self._drained_by is not None and not self.should_exit:
            left = self._service.running
            self.should_exit = not left or time.monotonic() > self._drained_by
            if self.should_exit:
                log.info("leaving", extra={"facts": {"unfinished": left}})
        return await super().on_tick(counter)


def check_address(host: str, port: int) -> None:
    """Raise OptionError for an address that the system would take for another one."""
    if not host:  # the system would listen on every network
        raise OptionError("`host` is empty; 0.0.0.0 is every network")
    if not 0 <= port < 2**16:  # the system would take the remainder
        raise OptionError(f"`port` must be between 0 and {2**16 - 1}, not {port}")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, opened before the slow part of the start (raises OptionError).

    Clients that connect before the model is loaded wait for it.
    """
    check_address(host, port)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with ExitStack() as failed:
            listening = failed.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen()
            failed.pop_all()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise OptionError(
            f"cannot listen on {host} port {port}: {reason}; choose another `port` or `host`"
        ) from error
    listening.set_inheritable(False)
    return listening


def serve(app: FastAPI, listening: socket.socket) -> None:
    sys.setswitchinterval(SWITCH_INTERVAL)
    Server(app).run(sockets=[listening])
    log.info("ended")
