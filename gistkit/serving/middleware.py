"""What every request passes: id, log line and metrics, host, drain, key, and size of the body.

All exceptions become error responses here. While the server drains, only health and metrics are
answered. The body is read whole, up to the limit, before anything else: a slow sender delays no
other request and takes none of the model's memory.
"""

import asyncio
import re
import time
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from uuid import uuid4

from fastapi.routing import APIRoute
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gistkit.errors import BusyError, UnavailableError
from gistkit.serving.api_errors import ApiError, GoneError, api_error
from gistkit.serving.keys import ANY, Keys, scope_of
from gistkit.serving.observability import log
from gistkit.serving.service import Service

ALWAYS = ("/health/live", "/health/ready", "/metrics")
"""Paths that are answered while the server drains, and not counted as running."""

MAX_REQUESTS = 1024
"""Requests at once, including those whose body is still arriving."""

UPLOAD = "/v1/gists/file"
MAX_FILE = 64 * 2**20
"""Bytes of an uploaded gist file."""
MAX_UPLOADS = 4
"""Gist files at once: while a file is checked, memory holds it several times."""

BODY_SECONDS = 60.0
"""Time for a body to arrive."""

_VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SCOPE = "gistkit.record"


@dataclass(slots=True)
class Record:
    """What is known of a request, for its log line and the metrics.

    Attributes:
        id: of the request, returned as X-Request-Id.
        client: name of its key, or its address.
        begun: `time.perf_counter()` at its start.
        facts: further fields of the log line.
    """

    id: str
    client: str = ""
    begun: float = field(default_factory=time.perf_counter)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.begun

    @classmethod
    def start(cls, scope: Scope, request_id: str) -> "Record":
        """Begin the record of a request; an invalid id is replaced."""
        client = scope.get("client")
        id = request_id if _VALID_ID.fullmatch(request_id) else uuid4().hex
        record = scope[_SCOPE] = cls(id, client=client[0] if client else "")
        return record

    @staticmethod
    def of(scope: Scope) -> "Record":
        record = scope[_SCOPE]
        assert isinstance(record, Record)
        return record


class Middleware:
    """ASGI middleware around all routes.

    Args:
        keys: None: no key is needed.
        local: refuse requests for another host than this machine. A server without keys needs it:
            the page of another site could otherwise reach it under a name that points here.
    """

    def __init__(self, app: ASGIApp, *, service: Service, keys: Keys | None, local: bool) -> None:
        self._app, self._service, self._keys, self._local = app, service, keys, local
        self._uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, headers = scope["path"], Headers(scope=scope)
        record = Record.start(scope, headers.get("x-request-id", ""))
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = MutableHeaders(scope=message)
                added["X-Request-Id"] = record.id
                added["X-Content-Type-Options"] = "nosniff"
            await send(message)

        counted = path not in ALWAYS
        self._service.running += counted
        try:
            self._admit(path, headers)
            if self._keys is not None:
                _check_key(self._keys, scope, headers, record)
            uploading = path == UPLOAD
            if uploading and self._uploads >= MAX_UPLOADS:
                raise BusyError(f"{MAX_UPLOADS} gist files are being uploaded; send it later", 1.0)
            self._uploads += uploading
            try:
                limit = MAX_FILE if uploading else self._service.settings.max_body
                body = await _read_body(receive, headers, limit)
                await self._app(scope, _replay(body, receive), send_with_id)
            finally:
                self._uploads -= uploading
        except (GoneError, asyncio.CancelledError) as error:
            status = status or 499
            record.facts["gone"] = True
            if isinstance(error, asyncio.CancelledError):
                raise
        except Exception as error:
            failure = api_error(error, id=record.id)
            if not status:
                await failure.response()(scope, receive, send_with_id)
        finally:
            self._service.running -= counted
            self._finish(scope, record, status)

    def _admit(self, path: str, headers: Headers) -> None:
        if self._local and not _is_local(headers.get("host", "")):
            raise ApiError(
                403,
                "this server only answers to the names of its own machine; start it with API keys "
                "to reach it by another name",
                code="foreign_host",
            )
        if path in ALWAYS:
            return
        if self._service.draining:
            raise UnavailableError("the server is stopping; try another one, or again later")
        if self._service.running > MAX_REQUESTS:
            raise BusyError(f"more than {MAX_REQUESTS} requests at once; try again later", 1.0)

    def _finish(self, scope: Scope, record: Record, status: int) -> None:
        found = scope.get("route")
        route = found.path if isinstance(found, APIRoute) else "other"
        seconds = record.seconds
        self._service.metrics.requests.labels(route, str(status)).inc()
        self._service.metrics.seconds.labels(route).observe(seconds)
        facts = {
            "id": record.id,
            "client": record.client,
            "method": scope["method"],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            **record.facts,
        }
        log.info("request", extra={"facts": facts})


def _is_local(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if name.lower() == "localhost" or not host:
        return True
    try:
        return ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _check_key(keys: Keys, scope: Scope, headers: Headers, record: Record) -> None:
    needed = scope_of(scope["method"], scope["path"])
    if needed is None:
        return
    kind, _, token = headers.get("authorization", "").partition(" ")
    key = keys.find(token.strip()) if kind.lower() == "bearer" else None
    if key is None:
        raise ApiError(
            401,
            "no valid API key; send one as Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
    record.client = key.name
    if needed != ANY and needed not in key.scopes:
        raise ApiError(403, f"this key lacks the scope {needed}", code="missing_scope")


async def _read_body(receive: Receive, headers: Headers, limit: int) -> bytes:
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length[:20]) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise GoneError
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limit:
                    raise _too_large(limit)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise _closing(408, "the body did not arrive in time", "timeout") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once, and then what follows."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return left.pop() if left else await receive()

    return replay


def _too_large(limit: int) -> ApiError:
    return _closing(413, f"the body has more than {limit} bytes", "body_too_large")


def _closing(status: int, message: str, code: str) -> ApiError:
    # the rest of the body is not read
    return ApiError(status, message, code=code, headers={"Connection": "close"})
