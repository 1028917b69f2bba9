"""Errors as OpenAI's clients know them: a status, and {"error": {message, type, param, code}}."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from gistkit.errors import (
    BusyError,
    GistFileError,
    GistkitError,
    GistMismatchError,
    OptionError,
    PromptError,
    SaveError,
    UnavailableError,
)

TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
LONGEST = 500  # characters of a message


class Json(JSONResponse):
    """JSON in ASCII: a request's broken surrogates can be named in an answer."""

    def render(self, content: Any) -> bytes:
        """The bytes."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class ApiError(Exception):
    """What a client is told instead of an answer.

    Args:
        status: of HTTP.
        message: one line.
        code: a word for programs.
        param: the field that is wrong.
        headers: to be sent with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.headers = dict(headers or {})

    def to_json(self) -> dict[str, Any]:
        """The body."""
        fallback = "server_error" if self.status >= 500 else "invalid_request_error"
        message = " ".join(str(self).split())[:LONGEST]
        kind = TYPES.get(self.status, fallback)
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Json:
        """The whole answer."""
        return Json(self.to_json(), self.status, self.headers)


class GoneError(Exception):
    """The client closed the connection: nobody is to be told anything."""


def failure_of(error: Exception) -> ApiError | None:
    """What to tell a client; None: this is a mistake of ours."""
    match error:
        case ApiError():
            return error
        case BusyError():
            wait = {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
            return ApiError(429, str(error), code="busy", headers=wait)
        case UnavailableError():
            return ApiError(503, str(error), code="unavailable", headers={"Retry-After": "1"})
        case GistMismatchError():
            return ApiError(400, str(error), code="gist_mismatch")
        case GistFileError():
            return ApiError(404, str(error), code="gist_not_found")
        case PromptError() | OptionError():
            return ApiError(400, str(error), code="invalid_value")
        case SaveError():
            return ApiError(507, str(error), code="store_full")
        case TimeoutError():
            return ApiError(504, "the request took longer than the server allows", code="timeout")
        case GistkitError():
            return ApiError(500, str(error), code="server_error")
    return None


def internal() -> ApiError:
    """For mistakes of ours; what happened is in the log."""
    return ApiError(500, "the server failed at this request; see its log", code="server_error")


async def http_failure(request: Request, error: Exception) -> Json:
    """No such route, a method that it does not have, a body that is no JSON."""
    assert isinstance(error, HTTPException)
    status = 400 if error.status_code == 422 else error.status_code
    message, code = f"{error.detail}", None
    if "parsing the body" in message:  # FastAPI's, for brackets without end and the like
        message, code = "the body cannot be read as JSON", "invalid_value"
    elif status == 404:
        message = f"no such route: {request.method} {request.url.path}"
    return ApiError(status, message, code=code, headers=error.headers).response()


async def invalid(request: Request, error: Exception) -> Json:
    """A request whose fields are not what they should be: the first of its mistakes."""
    assert isinstance(error, RequestValidationError)
    first = _first(error.errors())
    name = ".".join(_place(first))[:100]
    if first["type"] == "extra_forbidden":
        message = f"unknown or unsupported field {name!r}"
    elif first["type"] == "json_invalid":
        message, name = f"the body is no JSON: {first['ctx']['error']}", ""
    elif not name:
        message = f"the body: {first['msg']}; send a JSON object as application/json"
    else:
        message = f"{name}: {first['msg']}"
    return ApiError(400, message, code="invalid_value", param=name or None).response()


def _first(mistakes: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of a field that may be this or that, the alternative that went furthest tells most."""
    field = _place(mistakes[0])
    return max(
        (one for one in mistakes if _place(one)[: len(field)] == field),
        key=lambda one: (len(one["loc"]), one["type"] not in ("string_type", "list_type")),
    )


def _place(mistake: Mapping[str, Any]) -> list[str]:
    """Where it is in the request, without pydantic's names of alternatives (`list[Part]`)."""
    *path, last = [str(part) for part in mistake["loc"][1:]] or [""]
    ours = mistake["type"] != "extra_forbidden"  # else the last is the client's word
    return [part for part in path if "[" not in part] + [last] * (not ours or "[" not in last)
