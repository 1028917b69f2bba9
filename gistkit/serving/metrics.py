"""Numbers for Prometheus. A registry of its own, so that several servers fit into a process."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """What is counted; names and meanings stand in docs/serving.md."""

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
        self.first = Histogram(
            "gistkit_time_to_first_token_seconds",
            "From a request to the first of its answer.",
            buckets=SECONDS,
            registry=registry,
        )
        self.tokens = Counter(
            "gistkit_tokens",
            "Tokens: of prompts (cached ones included), of these cached, of instructions that "
            "gists replaced, of answers.",
            ("kind",),
            registry=registry,
        )
        self.gists = Counter(
            "gistkit_gists",
            "Requests by what became of their gist.",
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
            "The store's own counts (docs/store.md): hits, misses, bytes, ...",
            ("what",),
            registry=registry,
        )

    def page(self, engine: Mapping[str, float], store: Mapping[str, float]) -> bytes:
        """All of it, in Prometheus' text format."""
        for gauge, found in ((self._engine, engine), (self._store, store)):
            gauge.clear()
            for what, number in found.items():
                gauge.labels(what).set(number)
        return generate_latest(self.registry)
