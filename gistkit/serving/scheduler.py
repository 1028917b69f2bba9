"""Which requests begin next: clients take turns, as long as there is memory for whole answers.

    client a   1 2 3
    client b   4            order: 1 4 5 2 6 3
    client c   5 6

Every row of a batch is as wide as the widest, so a batch needs rows x columns tokens of keys and
values. They are reserved before a request begins: no answer stops half way for lack of memory.

    limit 100 tokens    running  2 rows x 20 columns = 40
    next  1 x 30        3 rows x 30 = 90: begins
    next  1 x 10        4 rows x 30 = 120: waits, and all requests behind it wait, too

No request overtakes another for lack of memory, so that long prompts do not wait forever. The slack
that batches keep to grow into (a quarter more rows, 64 columns) is not counted.

Knows nothing about models or threads.
"""

import asyncio
import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Generic, TypeVar

from gistkit.errors import BusyError
from gistkit.serving.engine import Prepared, StreamChunk

MAX_BATCHES = 4
"""Batches at once where rows cannot join a running one: the fewer, the larger the next one."""

PREFILL = 2048
"""Tokens read between two steps, padding included: running answers wait meanwhile."""

RECENT = 64  # finished answers that the throughput is estimated from
MAX_RETRY_AFTER = 60.0  # seconds


@dataclass(eq=False, slots=True)
class Request:
    """A prepared prompt on its way through an engine.

    Attributes:
        chunks: what the engine has generated, or the error that ends the request.
        cancelled: the caller has left.
    """

    prepared: Prepared
    chunks: "asyncio.Queue[StreamChunk | Exception]" = field(default_factory=asyncio.Queue)
    cancelled: bool = False


R = TypeVar("R", bound=Request)


class FairQueue(Generic[R]):
    """At most `max_size` waiting requests, one per client in turn."""

    def __init__(self, max_size: int) -> None:
        self._clients: dict[str, deque[R]] = {}  # the next client stands first
        self._finished: deque[float] = deque(maxlen=RECENT)
        self._max_size = max_size
        self.size = 0

    def push(self, *requests: R) -> None:
        """Add requests behind the others of their client (raises BusyError: no room for all)."""
        if self.size + len(requests) > self._max_size:
            seconds = self.seconds_until_room()
            message = f"{self.size} requests are waiting already; try again in {seconds:.0f} s"
            raise BusyError(message, seconds)
        for request in requests:
            self._clients.setdefault(request.prepared.client, deque()).append(request)
        self.size += len(requests)

    def record_finished(self, answers: int = 1) -> None:
        """Count answers that have just finished, which tells how quickly the queue moves."""
        self._finished.extend([time.monotonic()] * answers)

    def seconds_until_room(self) -> float:
        """How long a new request should wait, going by the last answers."""
        finished = list(self._finished)
        if len(finished) < 2:
            return 1.0
        each = (finished[-1] - finished[0]) / (len(finished) - 1)
        return min(max(1.0, each * (1 + self.size)), MAX_RETRY_AFTER)

    def in_turn(self) -> list[R]:
        """All requests, the next one first."""
        turns = zip_longest(*self._clients.values())
        return [request for request in chain.from_iterable(turns) if request is not None]

    def remove(self, request: R) -> bool:
        """Take out a request that was given up; False: it is not in the queue."""
        own = self._clients.get(request.prepared.client)
        if own is None or request not in own:
            return False
        own.remove(request)
        self.size -= 1
        if not own:
            del self._clients[request.prepared.client]
        return True

    def take(self, requests: Collection[R]) -> None:
        """Take out requests that begin; their clients move to the end of the line."""
        for request in requests:
            own = self._clients.pop(request.prepared.client)
            own.remove(request)
            self.size -= 1
            if own:
                self._clients[request.prepared.client] = own

    def clear(self) -> list[R]:
        requests = self.in_turn()
        self._clients.clear()
        self.size = 0
        return requests


@dataclass(frozen=True, slots=True)
class Scheduler:
    """Groups waiting requests into batches that fit into memory.

    Attributes:
        max_rows: answers at once.
        max_tokens: tokens of keys and values at once.
        rows_join: whether rows can join a running batch.
        rows_differ: whether prompts of different lengths can begin together.
    """

    max_rows: int
    max_tokens: int
    rows_join: bool
    rows_differ: bool

    def fits_alone(self, prepared: Prepared) -> bool:
        """Whether there is memory for a prompt when nothing else runs."""
        return prepared.sampling.n * prepared.total_tokens <= self.max_tokens

    def schedule(
        self, waiting: Iterable[Request], running: Sequence[tuple[int, int]]
    ) -> list[list[Request]]:
        """Groups of requests that begin now, each group to be read in one pass.

        Args:
            waiting: in the order of their turns.
            running: rows and columns of each running batch.
        """
        groups: dict[tuple[int, ...], list[Request]] = {}
        rows, prefill = sum(rows for rows, _ in running), 0
        for request in waiting:
            prepared = request.prepared
            if self.rows_differ:
                key: tuple[int, ...] = (min(prepared.num_cached, 1),)
            else:
                key = (prepared.num_cached, len(prepared.ids))
            batches = len(groups) + len(running)
            if not self.rows_join and key not in groups and batches >= MAX_BATCHES:
                continue  # begins when a batch has ended
            group = groups.get(key, [])
            prefill += _padded([*group, request]) - _padded(group)
            rows += prepared.sampling.n
            if rows > self.max_rows or (groups and prefill > PREFILL):
                break
            if self._tokens(running, {**groups, key: [*group, request]}) > self.max_tokens:
                break
            groups[key] = [*group, request]
        return list(groups.values())

    def _tokens(
        self, running: Sequence[tuple[int, int]], groups: dict[tuple[int, ...], list[Request]]
    ) -> int:
        """Tokens in memory at most, once these groups have begun."""
        shapes = list(running)
        for group in groups.values():
            prompts = [request.prepared for request in group]
            shapes.append(
                (sum(p.sampling.n for p in prompts), max(p.total_tokens for p in prompts))
            )
        if self.rows_join:  # they all become one batch
            return sum(rows for rows, _ in shapes) * max(columns for _, columns in shapes)
        return sum(rows * columns for rows, columns in shapes)


def _padded(group: Sequence[Request]) -> int:
    """Tokens of the pass that reads a group, padding included."""
    return len(group) * max((len(request.prepared.ids) for request in group), default=0)
