"""One vLLM server: what it is asked over HTTP, and what is known of it.

    up        it has shown that it runs these weights, our connector and this store
    suspect   its connection broke; it gets nothing new until it has shown it again
    gone      it does not answer, or is another server; a `Watch` sees when it is back

Knows nothing of other servers.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2

from gistkit.errors import OptionError
from gistkit.serving.vllm.closing import ClosingTransport
from gistkit.serving.vllm.identity import Identity
from gistkit.serving.vllm.wire import (
    BrokenError,
    EndpointError,
    Said,
    StrangerError,
    events,
    read_event,
    refusal,
)

CONNECT = 5.0  # seconds
ASIDE = 10.0  # seconds for small questions
IDLE = 2.0  # seconds; vLLM closes connections that are idle for 5, and may do so at a bad moment
REMEMBERED = 4096
"""Gists and instructions of which is known that an endpoint has them at hand."""

UNTRIED = "nobody has asked it yet"

State = Literal["up", "suspect", "gone"]


def client_of(key: str | None) -> httpx2.AsyncClient:
    """A client for vLLM servers; `key` is theirs. For one event loop."""
    return httpx2.AsyncClient(
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx2.Timeout(None, connect=CONNECT),
        transport=ClosingTransport(
            limits=httpx2.Limits(max_connections=None, keepalive_expiry=IDLE),
            trust_env=False,
        ),
        trust_env=False,  # no proxies: these are machines of our own
    )


def check_url(url: str) -> str:
    """A server's address without what stands behind it (raises OptionError)."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    path = parts.path.rstrip("/") if good else ""
    if not good or path not in ("", "/v1") or parts.query or parts.fragment or parts.username:
        raise OptionError(f"--endpoint must be like http://HOST:PORT, not {url[:200]!r}")
    return f"{parts.scheme}://{parts.netloc}"


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server says of itself.

    Attributes:
        identity: its model; None: it was not started with our command.
        max_length: tokens of a prompt and its answer together.
    """

    identity: Identity | None
    max_length: int


class Endpoint:
    """See above.

    Attributes:
        state: see above.
        why: what is wrong, where it is not up.
        running: answers that it is giving us.
        served: requests that it was given, ever.
        held: gists and instructions that it was asked for lately: its memory has them.
        readings: answers being read, to be ended when it is gone.
        woken: somebody thinks that it should be looked at.
    """

    def __init__(self, url: str, client: httpx2.AsyncClient) -> None:
        self.url, self._client = url, client
        self.state: State = "gone"
        self.why = UNTRIED
        self.running = self.served = 0
        self.held: OrderedDict[str, None] = OrderedDict()
        self.readings: set[asyncio.Task[None]] = set()
        self.woken = asyncio.Event()

    @property
    def up(self) -> bool:
        """Whether it gets requests."""
        return self.state == "up"

    def take(self, what: str) -> None:
        """Count a request that it is given."""
        self.running += 1
        self.served += 1
        if what:
            self.held[what] = None
            self.held.move_to_end(what)
            if len(self.held) > REMEMBERED:
                self.held.popitem(last=False)

    def suspect(self, why: str) -> None:
        """No new requests before it has been looked at, which is now."""
        if self.up:
            self.state, self.why = "suspect", why
            self.woken.set()

    async def facts(self) -> Facts:
        """What it says of itself (raises EndpointError)."""
        found = await self._get("/v1/models")
        try:
            names = [str(one["id"]) for one in found["data"]]
            length = int(found["data"][0]["max_model_len"])
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise StrangerError("it does not list its models as vLLM does") from error
        return Facts(Identity.among(names), length)

    async def alive(self) -> None:
        """Nothing, where it says that it is well (raises EndpointError; TimeoutError: no word)."""
        await self._get("/health")

    async def ask(self, body: Mapping[str, Any]) -> AsyncGenerator[Said, None]:
        """Parts of one answer; ending early cancels the rest of it there.

        Raises:
            BrokenError: the connection broke, or the answer ended before its end.
            EndpointError: it failed, and another server may not.
            PromptError: the request is wrong.
        """
        ended = False
        try:
            async with self._client.stream(
                "POST", f"{self.url}/v1/completions", json=body
            ) as response:
                if response.status_code != 200:
                    raise refusal(response.status_code, _message(await response.aread()))
                async with aclosing(events(response.aiter_bytes())) as found:
                    async for event in found:  # to the last: then the connection can stay
                        said = read_event(event)
                        if said is not None:
                            ended = said.ended
                            yield said
        except httpx2.HTTPError as error:
            if not ended:
                raise BrokenError(_reason(error)) from error
        if not ended:
            raise BrokenError("its answer ended before its end")

    async def _get(self, path: str) -> Any:
        try:
            async with asyncio.timeout(ASIDE):
                response = await self._client.get(self.url + path)
        except httpx2.HTTPError as error:
            raise BrokenError(_reason(error)) from error
        if response.status_code != 200:
            refused = refusal(response.status_code, _message(response.content))
            raise refused if isinstance(refused, EndpointError) else StrangerError(str(refused))
        try:
            return response.json() if response.content else None
        except ValueError as error:
            raise StrangerError(f"{path} is no JSON") from error


def _message(content: bytes) -> object:
    try:
        found = json.loads(content)
        return found.get("error", found).get("message")
    except (ValueError, AttributeError):
        return content[:200].decode(errors="replace")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")
