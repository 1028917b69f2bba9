"""Errors in OpenAI's format: a status, and {"error": {message, type, param, code}}."""

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
from gistkit.serving.observability import log

TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class Json(JSONResponse):
    """JSON in ASCII, so that an error can quote a request's broken surrogates."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class ApiError(Exception):
    """An error response; `code` is for programs, `param` the field that is wrong."""

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
        fallback = "server_error" if self.status >= 500 else "invalid_request_error"
        message = " ".join(str(self).split())[:500]
        kind = TYPES.get(self.status, fallback)
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Json:
        return Json(self.to_json(), self.status, self.headers)


class GoneError(Exception):
    """The client closed the connection: there is no response."""


def api_error(error: Exception, **facts: Any) -> ApiError:
    """The response to an exception; one that is our own fault is logged, with these facts."""
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
    log.error("a request failed", exc_info=error, extra={"facts": facts})
    return ApiError(500, "the server failed at this request; see its log", code="server_error")


async def http_error(request: Request, error: Exception) -> Json:
    """Response to an unknown route, a wrong method, or a body that is not JSON."""
    assert isinstance(error, HTTPException)
    status = 400 if error.status_code == 422 else error.status_code
    message, code = f"{error.detail}", None
    if "parsing the body" in message:  # FastAPI's, for unclosed brackets and the like
        message, code = "the body cannot be read as JSON", "invalid_value"
    elif status == 404:
        message = f"no such route: {request.method} {request.url.path}"
    return ApiError(status, message, code=code, headers=error.headers).response()


async def validation_error(request: Request, error: Exception) -> Json:
    assert isinstance(error, RequestValidationError)
    mistake = _first(error.errors())
    name = ".".join(_path(mistake))[:100]
    if mistake["type"] == "extra_forbidden":
        message = f"unknown or unsupported field {name!r}"
    elif mistake["type"] == "json_invalid":
        message, name = f"the body is not valid JSON: {mistake['ctx']['error']}", ""
    elif not name:
        message = f"the body: {mistake['msg']}; send a JSON object as application/json"
    else:
        message = f"{name}: {mistake['msg']}"
    return ApiError(400, message, code="invalid_value", param=name or None).response()


def _first(mistakes: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of a field with alternative types, the alternative that matched furthest tells most."""
    field = _path(mistakes[0])
    return max(
        (mistake for mistake in mistakes if _path(mistake)[: len(field)] == field),
        key=lambda mistake: (
            len(mistake["loc"]),
            mistake["type"] not in ("string_type", "list_type"),
        ),
    )


def _path(mistake: Mapping[str, Any]) -> list[str]:
    """The field's path, without pydantic's names of alternatives (`list[Part]`)."""
    *path, last = [str(part) for part in mistake["loc"][1:]] or [""]
    path = [part for part in path if "[" not in part]
    # the name of an unknown field is the client's, and may have brackets
    return path if "[" in last and mistake["type"] != "extra_forbidden" else [*path, last]
