"""Connections to vLLM servers are closed, whatever is cancelled while they are."""

import asyncio
import gc
from contextlib import suppress
from pathlib import Path

import pytest

from gistkit.serving.vllm import client
from gistkit.serving.vllm.client import Endpoint, http_client

OPEN = Path("/proc/self/fd")


def sockets() -> int:
    """Open ones of this process."""
    found = 0
    for one in OPEN.iterdir():
        with suppress(OSError):  # the one that lists them
            found += str(one.readlink()).startswith("socket:")
    return found


@pytest.mark.skipif(not OPEN.is_dir(), reason="Linux tells what is open")
@pytest.mark.parametrize("turns", range(8))
def test_idle_connections_are_closed_though_the_request_that_does_it_is_cancelled(
    turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "IDLE", 0.02)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(0.02)  # so that each request has a connection of its own
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.transport.abort()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        before = sockets()
        http = http_client(None)
        one = Endpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", http)
        await asyncio.gather(*(one.check_health() for _ in range(4)))
        await asyncio.sleep(0.05)
        task = asyncio.create_task(one.check_health())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        await http.aclose()
        server.close()
        async with asyncio.timeout(10):
            while sockets() >= before:  # the one that listened is closed, too
                await asyncio.sleep(0.01)

    gc.disable()  # it would close what was forgotten
    try:
        asyncio.run(run())
    finally:
        gc.enable()
