"""One load on one server, in numbers."""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Any

from experiments.serving.client import Ask, Tally, load
from experiments.serving.process import Served, watched
from gistkit.stats import quantile

WARM = 60.0  # seconds that do not count for the slope of memory


def measured(
    served: Served,
    path: str,
    asked: Sequence[Ask],
    options: argparse.Namespace,
    seconds: float,
    *,
    watch: bool = False,
) -> dict[str, Any]:
    """One load on a server, in numbers."""

    async def work() -> tuple[Tally, float, Any]:
        async with watched(served) as memory:
            tally, took = await load(
                served.port,
                path,
                asked,
                clients=options.clients,
                seconds=seconds,
                seed=options.seed,
            )
        return tally, took, memory

    cpu, own = served.cpu_seconds, time.process_time()
    tally, took, memory = asyncio.run(work())
    cpu, own = served.cpu_seconds - cpu, time.process_time() - own
    found: dict[str, Any] = {
        "seconds": took,
        "requests": len(tally.ended),
        "requests_per_s": len(tally.ended) / took,
        "tokens_per_s": tally.tokens / took,
        "statuses": dict(sorted(tally.statuses.items())),
        "server_errors": sum(n for status, n in tally.statuses.items() if status >= 500),
        "broken": tally.broken[:20],
        "broken_count": len(tally.broken),
        "wrong": tally.wrong,
        "wrong_count": tally.wrong_count,
        "gists": dict(tally.gists),
        "first_token_s": spread(tally.first),
        "whole_answer_s": spread(tally.whole),
        "server_cpu": cpu / took,
        "generator_cpu": own / took,
    }
    if watch:
        warm = min(WARM, took / 3)
        settled = [y for t, y in zip(memory.seconds, memory.rss, strict=True) if t >= warm]
        found["memory"] = {
            "seconds": memory.seconds,
            "rss": memory.rss,
            "counted_after_s": warm,
            "slope_bytes_per_minute": memory.slope(warm),
            "first_rss": settled[0],
            "last_rss": settled[-1],
            "most_rss": max(memory.rss),
        }
        found["requests_by_10_s"] = _by_time(tally.ended, 10)
    note(f"{path}: {found['requests']} answers, {found['requests_per_s']:.0f} a second")
    return found


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Quantiles."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: quantile(ordered, share) for name, share in shares.items()}


def note(text: str) -> None:
    """Tell whoever waits."""
    print(f"serving_load: {text}", file=sys.stderr, flush=True)


def _by_time(ended: Sequence[float], width: int) -> list[int]:
    counts = [0] * (int(max(ended, default=0)) // width + 1)
    for at in ended:
        counts[int(at) // width] += 1
    return counts
