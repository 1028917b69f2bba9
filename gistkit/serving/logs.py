"""Structured logs: one JSON object a line, on standard error; one line for each request.

What was asked and answered is not in them, nor are keys. Exceptions are told by type and place,
because their messages may quote a prompt.
"""

import asyncio
import json
import logging
import re
import sys
import time
import traceback
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from starlette.types import Scope

NAME = "gistkit.serving"
log = logging.getLogger(NAME)

_SANE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SCOPE = "gistkit.note"


@dataclass(slots=True)
class Note:
    """What is known of a request: for its log line and for the metrics.

    Attributes:
        id: the request's, sent back as X-Request-Id.
        client: name of its key, or where it comes from.
        begun: `time.perf_counter()` at its start.
        facts: more for the log line.
    """

    id: str
    client: str = ""
    begun: float = field(default_factory=time.perf_counter)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Since its start."""
        return time.perf_counter() - self.begun


def take_note(scope: Scope, given_id: str) -> Note:
    """Begin the note of a request; an id that is not sane is replaced."""
    id = given_id if _SANE.fullmatch(given_id) else uuid4().hex
    client = scope.get("client")
    note = Note(id, client=client[0] if client else "")
    scope[_SCOPE] = note
    return note


def note_of(scope: Scope) -> Note:
    """The note of a request."""
    note = scope[_SCOPE]
    assert isinstance(note, Note)
    return note


def tell_of_loop(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What asyncio found out too late; its own words show exceptions whole."""
    log.error("in the event loop: %s", context["message"], exc_info=context.get("exception"))


class JsonLines(logging.Formatter):
    """Records as JSON; a record's `facts` are its fields."""

    def __init__(self, *, whole: bool = False) -> None:
        super().__init__()
        self._whole = whole

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        said: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            said["error"] = type(error).__name__
            if self._whole:
                said["message"] = str(error)
            said["where"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(error.__traceback__)[-12:]
            ]
        return json.dumps(said, default=str)


def start_logging(*, log_prompts: bool) -> None:
    """Send what this server, uvicorn and all others have to say to standard error, as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(whole=log_prompts))
    logging.getLogger().handlers = [handler]
    logging.captureWarnings(True)
    for name, level in (("gistkit", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
