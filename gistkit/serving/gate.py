"""The outermost layer: every request gets an id, an end, a line in the log, a place in the counts.

    Gate ── Door ── routes

Whatever was raised inside becomes an answer here. While the server drains, only health and metrics
are answered.
"""

import asyncio
from collections.abc import Mapping
from ipaddress import ip_address

from fastapi.routing import APIRoute
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gistkit.errors import BusyError, UnavailableError
from gistkit.serving.failures import ApiError, GoneError, failure_of, internal
from gistkit.serving.logs import Note, log, take_note
from gistkit.serving.metrics import Metrics

ALWAYS = ("/health/live", "/health/ready", "/metrics")
MOST = 1024
"""Requests at once, those included whose body is still coming."""


class Drain:
    """Whether the server is leaving, and how many requests it still has."""

    def __init__(self) -> None:
        self.begun = False
        self.running = 0


class Gate:
    """See above.

    Args:
        local: refuse requests whose Host is not this machine. A server without keys needs it: a
            page of another site could otherwise reach it under a name that it made point here.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, drain: Drain, local: bool) -> None:
        self._app, self._metrics, self._drain, self._local = app, metrics, drain, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        note = take_note(scope, headers.get("x-request-id", ""))
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = MutableHeaders(scope=message)
                added["X-Request-Id"] = note.id
                added["X-Content-Type-Options"] = "nosniff"
            await send(message)

        counted = scope["path"] not in ALWAYS
        self._drain.running += counted
        try:
            self._admit(scope["path"], headers)
            await self._app(scope, receive, sending)
        except (GoneError, asyncio.CancelledError) as error:
            status = status or 499
            note.facts["gone"] = True
            if isinstance(error, asyncio.CancelledError):
                raise
        except Exception as error:
            failure = failure_of(error)
            if failure is None:
                log.exception("a request failed", extra={"facts": {"id": note.id}})
                failure = internal()
            if not status:
                await failure.response()(scope, receive, sending)
        finally:
            self._drain.running -= counted
            self._tell(scope, note, status)

    def _admit(self, path: str, headers: Headers) -> None:
        if self._local and not _is_local(headers.get("host", "")):
            raise ApiError(
                403,
                "this server answers to its own machine's names only; give it API keys "
                "(--api-keys) to reach it by another name",
                code="foreign_host",
            )
        if self._drain.begun and path not in ALWAYS:
            raise UnavailableError("the server is stopping; ask another, or in a while")
        if self._drain.running > MOST and path not in ALWAYS:
            raise BusyError(f"more than {MOST} requests at once; ask again in a while", 1.0)

    def _tell(self, scope: Scope, note: Note, status: int) -> None:
        found = scope.get("route")
        route = found.path if isinstance(found, APIRoute) else "other"
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(note.seconds)
        facts: Mapping[str, object] = {
            "id": note.id,
            "client": note.client,
            "method": scope["method"],
            "route": route,
            "status": status,
            "seconds": round(note.seconds, 4),
            **note.facts,
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
