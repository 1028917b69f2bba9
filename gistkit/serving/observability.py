"""Structured logs and Prometheus metrics.

Logs are one JSON object a line on standard error, one line for each request. They hold no prompts,
answers or keys; of exceptions only type and place, because messages may quote a prompt.
"""

import asyncio
import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import Scope

log = logging.getLogger("gistkit.serving")

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

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
        """Time since the start."""
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
        """The record of a request."""
        record = scope[_SCOPE]
        assert isinstance(record, Record)
        return record


class JsonLines(logging.Formatter):
    """Formats records as JSON; the `facts` of a record become fields.

    Args:
        messages: include the messages of exceptions.
    """

    def __init__(self, *, messages: bool = False) -> None:
        super().__init__()
        self._messages = messages

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            fields["error"] = type(error).__name__
            if self._messages:
                fields["message"] = str(error)
            fields["where"] = [
                f"{frame.filename}:{frame.lineno} {frame.name}"
                for frame in traceback.extract_tb(error.__traceback__)[-12:]
            ]
        return json.dumps(fields, default=str)


def start_logging(*, log_prompts: bool) -> None:
    """Send the logs of this server, uvicorn and other libraries to standard error, as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(messages=log_prompts))
    logging.getLogger().handlers = [handler]
    logging.captureWarnings(True)
    for name, level in (("gistkit", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


def log_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Exception handler of the event loop; asyncio's own would print exceptions whole."""
    log.error("in the event loop: %s", context["message"], exc_info=context.get("exception"))


class Metrics:
    """Prometheus metrics in a registry of their own; docs/serving.md explains them."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "gistkit_requests",
            "Requests by route and status.",
            ("route", "status"),
            registry=registry,
        )
        self.seconds = Histogram(
            "gistkit_request_seconds",
            "From a request to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self.first_token = Histogram(
            "gistkit_time_to_first_token_seconds",
            "From a request to the first token of its answer.",
            buckets=SECONDS,
            registry=registry,
        )
        self.tokens = Counter(
            "gistkit_tokens",
            "Tokens: of prompts (cached ones included), cached ones, of instructions that gists "
            "replaced, of answers.",
            ("kind",),
            registry=registry,
        )
        self.gists = Counter(
            "gistkit_gists",
            "Requests by the status of their gist.",
            ("status",),
            registry=registry,
        )
        self._engine = Gauge(
            "gistkit_engine",
            "The engine: running and waiting requests, kv_bytes of kv_limit.",
            ("what",),
            registry=registry,
        )
        self._store = Gauge(
            "gistkit_store",
            "The store's counts (docs/store.md): hits, misses, bytes, ...",
            ("what",),
            registry=registry,
        )

    def page(self, engine: Mapping[str, float], store: Mapping[str, float]) -> bytes:
        """All metrics in Prometheus' text format."""
        for gauge, values in ((self._engine, engine), (self._store, store)):
            gauge.clear()
            for what, value in values.items():
                gauge.labels(what).set(value)
        return generate_latest(self.registry)
