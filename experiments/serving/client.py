"""A load on an OpenAI-compatible server: N clients, each with one request under way at a time.

    asks ── drawn by seed ──> client ── one kept connection, streamed answers ──> Tally

Speaks just enough HTTP/1.1 to leave the processor to the server: a general client takes about as
long to read a small answer as the server takes to make it. Knows nothing about gists.
"""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

PATIENCE = 120.0  # seconds; an answer that takes longer has hung


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, and the only right answer."""

    body: Mapping[str, Any]
    expected: str


@dataclass(slots=True)
class Tally:
    """What became of all requests.

    Attributes:
        ended: seconds since the start at which each answer was whole.
        first: seconds from a request to the first text of its answer.
        whole: seconds to its end.
        tokens: of all answers, as the server counts them.
        statuses: how often each HTTP status came.
        broken: streams that ended with an error, or connections that did.
        wrong: (request's number, seconds since the start, answer) where it is not the expected one;
            the first 20.
        wrong_count: all of those.
        gists: how often which `gist.status` was told.
    """

    ended: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    tokens: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    wrong: list[tuple[int, float, str]] = field(default_factory=list)
    wrong_count: int = 0
    gists: Counter[str] = field(default_factory=Counter)


async def load(
    port: int, path: str, asks: Sequence[Ask], *, clients: int, seconds: float, seed: int
) -> tuple[Tally, float]:
    """Ask until `seconds` are over, and read what is under way to its end.

    Returns:
        What became of it, and how long all of it took.
    """
    tally = Tally()
    begun = time.perf_counter()

    async def client(number: int) -> None:
        draw = random.Random(f"{seed} {number}")
        connection = Connection(port, path)
        try:
            while time.perf_counter() - begun < seconds:
                chosen = draw.randrange(len(asks))
                try:
                    await _ask(connection, asks[chosen], chosen, tally, begun)
                except (OSError, ValueError, asyncio.IncompleteReadError) as error:
                    tally.broken.append(f"{type(error).__name__}: {error}"[:200])
                    await connection.close()
                    await asyncio.sleep(0.1)
        finally:
            await connection.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return tally, time.perf_counter() - begun


async def _ask(connection: "Connection", ask: Ask, number: int, tally: Tally, begun: float) -> None:
    start = time.perf_counter()
    first, text, usage, finished = None, "", None, False
    async with asyncio.timeout(PATIENCE):
        status = await connection.send(ask.body)
        tally.statuses[status] += 1
        async for event in connection.events():
            if "error" in event:
                raise ValueError(f"status {status}: {event['error']}")
            usage = event.get("usage") or usage
            told = event.get("gist")
            if told is not None and not event.get("usage"):
                tally.gists[told["status"]] += 1
            for choice in event.get("choices", ()):
                more = choice.get("text") or choice.get("delta", {}).get("content") or ""
                finished = finished or bool(choice.get("finish_reason"))
                if (more or finished) and first is None:
                    first = time.perf_counter()
                text += more
    now = time.perf_counter()
    if status != 200:
        return
    if not finished:
        raise ValueError("the answer broke off")
    tally.first.append((first or now) - start)
    tally.whole.append(now - start)
    tally.ended.append(now - begun)
    tally.tokens += usage["completion_tokens"] if usage else 0
    if text != ask.expected:
        tally.wrong_count += 1
        if len(tally.wrong) < 20:
            tally.wrong.append((number, round(now - begun, 3), text))


class Connection:
    """One kept connection; opened when it is needed."""

    def __init__(self, port: int, path: str) -> None:
        self._port, self._path = port, path
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._headers: dict[str, str] = {}

    async def send(self, body: Mapping[str, Any]) -> int:
        """Send a request; returns its status."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        data = json.dumps(body).encode()
        head = (
            f"POST {self._path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        writer.write(head.encode() + data)
        _, status, *_ = (await reader.readuntil(b"\r\n")).split()
        self._headers = {}
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            name, _, value = line.decode("latin-1").partition(":")
            self._headers[name.lower()] = value.strip()
        return int(status)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The events of the answer, without `[DONE]`; or the one JSON object that it is."""
        streamed = self._headers.get("content-type", "").startswith("text/event-stream")
        text = b""
        async for piece in self._pieces():
            text += piece
            while streamed and b"\n\n" in text:
                event, _, text = text.partition(b"\n\n")
                data = event.removeprefix(b"data: ")
                if event.startswith(b"data: ") and data != b"[DONE]":
                    yield json.loads(data)
        if not streamed:
            yield json.loads(text)
        if self._headers.get("connection", "").lower() == "close":
            await self.close()

    async def _pieces(self) -> AsyncIterator[bytes]:
        assert self._streams is not None
        reader, _ = self._streams
        if "content-length" in self._headers:
            yield await reader.readexactly(int(self._headers["content-length"]))
            return
        while size := int(await reader.readuntil(b"\r\n"), 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)

    async def close(self) -> None:
        """Let go of it."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
