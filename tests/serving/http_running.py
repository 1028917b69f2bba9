"""A real server on loopback, in a thread of this process."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from gistkit.serving.app import make_app
from gistkit.serving.server import Server, listen
from gistkit.serving.service import Service


@dataclass(frozen=True)
class Running:
    """Where it listens, and what runs there."""

    url: str
    service: Service
    engine: Any
    server: Server
    opened: ExitStack

    def http(self, key: str = "") -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return self.opened.enter_context(
            httpx.Client(base_url=self.url, headers=headers, timeout=30)
        )

    def client(self, key: str = "none") -> openai.OpenAI:
        return self.opened.enter_context(
            openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)
        )


def wait_for(what: Callable[[], bool]) -> None:
    """Until something is true of the server's thread."""
    until = time.monotonic() + 10
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


def spoken(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What the server's process logged; the client in this process has loggers of its own."""
    return [
        record
        for record in caplog.records
        if record.name.partition(".")[0] not in ("httpx", "httpcore", "openai")
    ]


class Announcing(Server):
    """A server that tells when its start is over, its log line included."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(app)
        self.listening = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()


@contextmanager
def running(engine: Any, **options: Any) -> Iterator[Running]:
    """Run a server around an engine."""
    app = make_app(engine, engine.store, **options)
    listening = listen("127.0.0.1", 0)
    server = Announcing(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.listening.wait(0.1):
            assert thread.is_alive()
        port = listening.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with ExitStack() as opened:
            yield Running(url, app.state.service, engine, server, opened)
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        assert not thread.is_alive()
