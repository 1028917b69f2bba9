"""Structured logs and Prometheus metrics.

Logs are one JSON object a line on standard error, one line for each request. They hold no prompts,
answers or keys; of exceptions only type and place, because messages may quote a prompt.
"""

import asyncio
import json
import logging
import sys
import time
import traceback
from collections.abc import Mapping
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

log = logging.getLogger("gistkit.serving")

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class JsonLines(logging.Formatter):
    """Formats records and their `facts` as JSON; messages of exceptions only with `messages`."""

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
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, labelnames=("what",), registry=self.registry)
        histogram = partial(Histogram, buckets=SECONDS, registry=self.registry)
        self.requests = counter(
            "gistkit_requests", "Requests by route and status.", ("route", "status")
        )
        self.seconds = histogram(
            "gistkit_request_seconds", "From a request to the end of its answer.", ("route",)
        )
        self.first_token = histogram(
            "gistkit_time_to_first_token_seconds",
            "From a request to the first token of its answer.",
        )
        self.tokens = counter(
            "gistkit_tokens",
            "Tokens: of prompts (cached ones included), cached ones, of instructions that gists "
            "replaced, of answers.",
            ("kind",),
        )
        self.gists = counter("gistkit_gists", "Requests by the status of their gist.", ("status",))
        self._engine = gauge(
            "gistkit_engine", "The engine: running and waiting requests, kv_bytes of kv_limit."
        )
        self._store = gauge(
            "gistkit_store", "The store's counts (docs/store.md): hits, misses, bytes, ..."
        )

    def page(self, engine: Mapping[str, float], store: Mapping[str, float]) -> bytes:
        for gauge, values in ((self._engine, engine), (self._store, store)):
            gauge.clear()
            for what, value in values.items():
                gauge.labels(what).set(value)
        return generate_latest(self.registry)
