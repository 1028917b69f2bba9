"""One vLLM server over HTTP: requests, answers and its state.

    up        it has proved that it has these weights, gistkit's connector and this store
    suspect   its connection broke; it gets no new requests until it has proved it again
    down      it does not answer, or it is the wrong server

Requests and answers are token ids, so that one tokenizer reads and writes all texts.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

import anyio
import httpx2

from gistkit.errors import OptionError, PromptError

CONNECT = 5.0  # seconds
SMALL = 10.0  # seconds for small requests
IDLE = 2.0  # seconds; vLLM closes connections that are idle for 5, and may do so at a bad moment
RECENT = 4096  # gists and instructions that a server is assumed to hold in memory
LONGEST = 300  # characters of another server's message

T = TypeVar("T")


class EndpointError(Exception):
    """A server failed at a request; another one may not."""


class BrokenError(EndpointError):
    """The connection broke: the server is gone, or about to go."""


class WrongServerError(EndpointError):
    """The server has other weights, no connector, or another store."""


@dataclass(frozen=True, slots=True)
class TokenChunk:
    """A part of an answer.

    Attributes:
        logprobs: for each of them its id and log-probability, then those of the likeliest; empty
            where they were not requested.
    """

    tokens: Sequence[int]
    logprobs: Sequence[Sequence[tuple[int, float]]]
    finished: bool


class ServerInfo(NamedTuple):
    """A server's model names, and its limit of tokens of a prompt and its answer."""

    names: Sequence[str]
    max_length: int


class Endpoint:
    """A server, and what is known about it.

    Attributes:
        problem: what is wrong, unless it is up.
        running: requests in progress.
        silent: health checks in a row without an answer.
        recent: gists and instructions of its last requests; they are in its memory.
        readers: tasks that read its answers, cancelled when it goes down.
        wake: set when it should be checked now.
    """

    def __init__(self, url: str, client: httpx2.AsyncClient) -> None:
        self.url, self._client = url, client
        self.state: Literal["up", "suspect", "down"] = "down"
        self.problem = ""
        self.running = self.served = self.silent = 0
        self.recent: OrderedDict[str, None] = OrderedDict()
        self.readers: set[asyncio.Task[None]] = set()
        self.wake = asyncio.Event()

    @property
    def up(self) -> bool:
        return self.state == "up"

    def assign(self, content: str) -> None:
        """Count a request; `content` is its gist or instruction, "": neither."""
        self.running += 1
        self.served += 1
        if content:
            self.recent[content] = None
            self.recent.move_to_end(content)
            if len(self.recent) > RECENT:
                self.recent.popitem(last=False)

    def suspect(self, problem: str) -> None:
        """Send nothing new before it was checked, which happens now."""
        if self.up:
            self.state, self.problem = "suspect", problem
            self.wake.set()

    async def info(self) -> ServerInfo:
        """Its names and limits (raises EndpointError; TimeoutError)."""
        found = await self._get("/v1/models")
        try:
            models = found["data"]
            return ServerInfo(
                [str(model["id"]) for model in models], int(models[0]["max_model_len"])
            )
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise WrongServerError("it does not list its models as vLLM does") from error

    async def check_health(self) -> None:
        """Raise EndpointError unless it is healthy (TimeoutError: no answer)."""
        await self._get("/health")

    async def complete(self, body: Mapping[str, Any]) -> AsyncGenerator[TokenChunk, None]:
        """Parts of one answer; closing the iterator early cancels the rest of it there.

        Raises:
            BrokenError: the connection broke, or the answer broke off.
            EndpointError: it failed, and another server may not.
            PromptError: the request is wrong.
        """
        finished = False
        try:
            async with self._client.stream(
                "POST", f"{self.url}/v1/completions", json=body
            ) as response:
                if response.status_code != 200:
                    raise _refusal(response.status_code, _message(await response.aread()))
                async with aclosing(_events(response.aiter_bytes())) as events:
                    async for event in events:  # to the last: then the connection can stay
                        chunk = _parse_event(event)
                        if chunk is not None:
                            finished = chunk.finished
                            yield chunk
        except httpx2.HTTPError as error:
            if not finished:
                raise BrokenError(_reason(error)) from error
        if not finished:
            raise BrokenError("its answer broke off")

    async def _get(self, path: str) -> Any:
        try:
            async with asyncio.timeout(SMALL):
                response = await self._client.get(self.url + path)
        except httpx2.HTTPError as error:
            raise BrokenError(_reason(error)) from error
        if response.status_code != 200:
            refused = _refusal(response.status_code, _message(response.content))
            raise refused if isinstance(refused, EndpointError) else WrongServerError(str(refused))
        try:
            return response.json() if response.content else None
        except ValueError as error:
            raise WrongServerError(f"{path} is not JSON") from error


def check_url(url: str) -> str:
    """A server's address without its path (raises OptionError)."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    path = parts.path.rstrip("/") if good else ""
    if not good or path not in ("", "/v1") or parts.query or parts.fragment or parts.username:
        raise OptionError(f"`endpoint` must be like http://HOST:PORT, not {url[:200]!r}")
    return f"{parts.scheme}://{parts.netloc}"


async def _events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The data of server-sent events, from a stream's bytes; comments are left out."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def _parse_event(event: bytes) -> TokenChunk | None:
    """A part of an answer; None: the event is something else.

    Raises:
        EndpointError: the server reports a failure, or the event cannot be parsed.
        PromptError: the server reports that the request is wrong.
    """
    if event == b"[DONE]":
        return None
    try:
        found = json.loads(event)
        if "error" in found:
            error = found["error"]
            raise _refusal(int(error.get("code") or 500), error.get("message"))
        if not found["choices"]:
            return None
        choice = found["choices"][0]
        tokens = list(map(int, choice.get("token_ids") or ()))
        table = choice.get("logprobs")
        logprobs = () if table is None else _logprobs(tokens, table)
        return TokenChunk(tokens, logprobs, choice.get("finish_reason") is not None)
    except PromptError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise EndpointError(f"its answer cannot be parsed: {error!r}") from error


def _logprobs(tokens: Sequence[int], table: Mapping[str, Any]) -> list[list[tuple[int, float]]]:
    tops = table.get("top_logprobs") or [None] * len(tokens)
    found = []
    for token, logprob, top in zip(tokens, table["token_logprobs"], tops, strict=True):
        best = [
            (int(name.removeprefix("token_id:")), float(value))
            for name, value in (top or {}).items()
        ]
        found.append([(token, float(logprob)), *sorted(best, key=lambda pair: -pair[1])])
    return found


def _refusal(status: int, message: object) -> Exception:
    """The error for a response of this status.

    A wrong request is wrong everywhere: PromptError. The rest is worth another server.
    """
    text = " ".join(str(message or "").split())[:LONGEST]
    if status in (400, 413, 422):
        return PromptError(f"vLLM refuses this request: {text}")
    if status in (401, 403):
        return WrongServerError(f"it wants another key (status {status}); set GISTKIT_ENDPOINT_KEY")
    if status == 404:
        return WrongServerError(f"it does not serve these weights: {text}")
    return EndpointError(f"status {status}: {text}")


def _message(content: bytes) -> object:
    try:
        found = json.loads(content)
        return found.get("error", found).get("message")
    except (ValueError, AttributeError):
        return content[:200].decode(errors="replace")


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


def http_client(key: str | None) -> httpx2.AsyncClient:
    """A client for vLLM servers with this API key, for one event loop."""
    return httpx2.AsyncClient(
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx2.Timeout(None, connect=CONNECT),
        transport=ClosingTransport(
            limits=httpx2.Limits(max_connections=None, keepalive_expiry=IDLE),
            trust_env=False,
        ),
        trust_env=False,  # no proxies: these are our own machines
    )


class ClosingTransport(httpx2.AsyncHTTPTransport):
    """A transport under which a cancelled task leaves no connection open.

    httpcore2 closes connections that were idle for too long inside the next request, one after the
    other. It shields that from anyio's way to cancel but not from `asyncio.Task.cancel`, after
    which the remaining ones would never be closed. So each request, and each end of an answer, is a
    task of its own here, cancelled in anyio's way and waited for.
    """

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; the response's body is not read yet."""
        begin = super().handle_async_request
        response = await _run_to_end(lambda: begin(request), lambda late: late.aclose())
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Body(response.stream)
        return response


class _Body(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream) -> None:
        self._inner = inner

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._inner.__aiter__()

    async def aclose(self) -> None:
        await _run_to_end(self._inner.aclose)


async def _run_to_end(
    work: Callable[[], Awaitable[T]], undo: Callable[[T], Awaitable[None]] | None = None
) -> T:
    """The result of `work`; on cancellation, wait for its end and undo it."""
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
        task.exception()  # mark it as retrieved
