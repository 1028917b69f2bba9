"""What a request must pass before it is looked at: its key, and the size of its body.

The body is read whole, as far as the limit goes: who sends it slowly holds up nobody else, and a
model's memory is not touched before all is there.
"""

import asyncio
from collections import deque

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gistkit.errors import BusyError
from gistkit.serving.failures import ApiError, GoneError
from gistkit.serving.keys import ANY, Keys, scope_of
from gistkit.serving.limits import MAX_FILE
from gistkit.serving.logs import note_of

FILE = "/v1/gists/file"
MOST_FILES = 4
"""Gist files at once: each is in memory several times over while it is checked."""

BODY_SECONDS = 60.0
"""A body must be there after so long."""


class Door:
    """See above.

    Args:
        keys: None: nobody needs one.
        max_body: bytes; gist files have a limit of their own.
    """

    def __init__(self, app: ASGIApp, *, keys: Keys | None, max_body: int) -> None:
        self._app, self._keys, self._max_body = app, keys, max_body
        self._files = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._keys is not None:
            _check_key(self._keys, scope, headers)
        if scope["path"] != FILE:
            await self._let_in(scope, receive, send, headers, self._max_body)
            return
        if self._files >= MOST_FILES:
            raise BusyError(f"{MOST_FILES} gist files are coming in already; send it later", 1.0)
        self._files += 1
        try:
            await self._let_in(scope, receive, send, headers, MAX_FILE)
        finally:
            self._files -= 1

    async def _let_in(
        self, scope: Scope, receive: Receive, send: Send, headers: Headers, limit: int
    ) -> None:
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _read(receive, headers, limit)
        except TimeoutError:
            raise _ends_here(408, "the body did not come in time", "timeout") from None
        left = deque([body])

        async def again() -> Message:
            if left:
                return {"type": "http.request", "body": left.popleft(), "more_body": False}
            return await receive()

        await self._app(scope, again, send)


def _check_key(keys: Keys, scope: Scope, headers: Headers) -> None:
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
    note_of(scope).client = key.name
    if needed != ANY and needed not in key.scopes:
        raise ApiError(403, f"this key lacks the scope {needed}", code="missing_scope")


async def _read(receive: Receive, headers: Headers, limit: int) -> bytes:
    said = headers.get("content-length", "0")
    if not said.isdecimal() or int(said[:20]) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
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


def _too_large(limit: int) -> ApiError:
    return _ends_here(413, f"the body has more than {limit} bytes", "body_too_large")


def _ends_here(status: int, message: str, code: str) -> ApiError:
    # the rest of the body is not read
    return ApiError(status, message, code=code, headers={"Connection": "close"})
