"""The server's process: its socket, and how it leaves.

SIGTERM or Ctrl-C: new requests get 503, running ones go on for up to `drain_seconds`; again:
it leaves at once.
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

from gistkit.errors import OptionError
from gistkit.serving.connection import Connection
from gistkit.serving.logs import log, tell_of_loop
from gistkit.serving.service import Service

LAST = 2  # seconds for connections to close, once nothing runs any more

SWITCH = 1e-4
"""Seconds after which a thread lets another have the interpreter. The one that decodes asks for it
after every operation; at Python's 5 ms it stands still whenever the event loop has much to say."""


class Server(uvicorn.Server):
    """uvicorn that drains."""

    def __init__(self, app: FastAPI) -> None:
        config = uvicorn.Config(
            app,
            lifespan="on",
            ws="none",
            http=Connection,
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=LAST,
            proxy_headers=False,
        )
        super().__init__(config)
        service = app.state.service
        assert isinstance(service, Service)
        self._service = service
        self._until: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the engine, then say where to ask."""
        asyncio.get_running_loop().set_exception_handler(tell_of_loop)
        await super().startup(sockets)
        gc.collect()
        gc.freeze()  # libraries and model stay: each full collection would look at them all again
        assert sockets
        host, port = sockets[0].getsockname()[:2]
        name = f"[{host}]" if ":" in host else host
        facts = {"url": f"http://{name}:{port}", "model": self._service.engine.name}
        log.info("listening", extra={"facts": facts})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain, or leave."""
        if self._until is None:
            self._service.drain.begun = True
            self._until = time.monotonic() + self._service.settings.drain_seconds
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to leave; asked ten times a second."""
        if self._until is not None and not self.should_exit:
            left = self._service.drain.running
            self.should_exit = not left or time.monotonic() > self._until
            if self.should_exit:
                log.info("leaving", extra={"facts": {"unfinished": left}})
        return await super().on_tick(counter)


def check_address(host: str, port: int) -> None:
    """Raise OptionError for an address that the system would take for another one."""
    if not host:  # for every network
        raise OptionError("--host is empty; 0.0.0.0 is every network")
    if not 0 <= port < 2**16:  # for what is left when it is divided by that
        raise OptionError(f"--port must be between 0 and {2**16 - 1}, not {port}")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, before anything slow is done (raises OptionError).

    Whoever connects before the model is loaded waits for it.
    """
    check_address(host, port)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with ExitStack() as failed:
            found = failed.enter_context(socket.socket(family, kind, protocol))
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
            found.listen()
            failed.pop_all()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise OptionError(
            f"cannot listen on {host} port {port}: {reason}; choose another --port or --host"
        ) from error
    found.set_inheritable(False)
    return found


def serve(app: FastAPI, found: socket.socket) -> None:
    """Serve until a signal comes; returns when all has ended."""
    sys.setswitchinterval(SWITCH)
    Server(app).run(sockets=[found])
    log.info("ended")
