"""Which server answers what: the least loaded of those that have the gist in memory.

    submit ──> queue ── a server has room ──> its answer is read ──> Job.chunks
    check each server ──> it is up or down ──> jobs start, or move to another server

A server has the gists of its last requests in memory; a server with much less to do is preferred
nevertheless, and then has them, too. Answers that fail before the client has seen a part of them
are retried, once, on another server.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from functools import partial

from gistkit.errors import GistkitError, UnavailableError
from gistkit.serving.scheduler import FairQueue
from gistkit.serving.vllm.client import BrokenError, Endpoint, EndpointError, WrongServerError
from gistkit.serving.vllm.jobs import Job
from gistkit.single_flight import STOPPED

log = logging.getLogger(__name__)

SLACK = 8
"""How many more answers than the least loaded a server may have, if it has the gist in memory."""

GRACE = 5.0  # seconds to wait for another server, where none is up
EVERY = 2.0  # seconds between two checks of a server that is up
SOON, LATE = 0.5, 4.0  # seconds between two of one that is not: longer each time
HANDSHAKE = 60.0  # seconds
SILENT = 3  # health checks without an answer, after which it is down

NONE_UP = "no vLLM server is up; try again later"
FAILED = "the engine failed at this request; try again"


class Router:
    """Jobs and servers, on one event loop.

    Args:
        handshake: has a server prove what it is (raises EndpointError).
        max_rows: answers at once on one server.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        handshake: Callable[[Endpoint], Awaitable[None]],
        *,
        max_rows: int,
        max_waiting: int,
    ) -> None:
        self.endpoints = endpoints
        self.retried = self.tokens = 0
        self._handshake = handshake
        self._max_rows = max_rows
        self.queue = FairQueue[Job](max_waiting)
        self._tasks: set[asyncio.Task[None]] = set()
        self._watchers: list[asyncio.Task[None]] = []
        self._changed = asyncio.Condition()
        self._stopped = False

    @property
    def running(self) -> int:
        return sum(endpoint.running for endpoint in self.endpoints)

    @property
    def up(self) -> int:
        return sum(endpoint.up for endpoint in self.endpoints)

    @property
    def _all_down(self) -> bool:
        return all(endpoint.state == "down" for endpoint in self.endpoints)

    async def start(self) -> None:
        await asyncio.gather(*map(self._update, self.endpoints))
        self._watchers = [asyncio.create_task(self._watch(e)) for e in self.endpoints]

    async def stop(self) -> None:
        """End everything that runs and waits with an UnavailableError."""
        self._stopped = True
        for job in self.queue.clear():
            job.chunks.put_nowait(UnavailableError(STOPPED))
        tasks = [*self._watchers, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- servers

    async def check(self, endpoint: Endpoint) -> str:
        """What is wrong with a server; "": nothing, and it is up."""
        try:
            if endpoint.up:
                await endpoint.check_health()
            else:
                async with asyncio.timeout(HANDSHAKE):
                    await self._handshake(endpoint)
                endpoint.state, endpoint.problem = "up", ""
        except TimeoutError:
            endpoint.silent += 1
            return "" if endpoint.up and endpoint.silent < SILENT else "it does not answer"
        except (EndpointError, GistkitError) as error:
            return str(error)
        except Exception:
            log.exception("checking a server failed")
            return "checking it failed; see the log"
        endpoint.silent = 0
        return ""

    async def _watch(self, endpoint: Endpoint) -> None:
        pause = SOON
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY if endpoint.up else pause):
                    await endpoint.wake.wait()
            pause = SOON if endpoint.up or endpoint.wake.is_set() else min(2 * pause, LATE)
            endpoint.wake.clear()
            await self._update(endpoint)

    async def _update(self, endpoint: Endpoint) -> None:
        """Check a server, and move jobs to it or away from it."""
        was_up, facts = endpoint.up, {"url": endpoint.url}
        problem = await self.check(endpoint)
        if problem:
            if (endpoint.state, endpoint.problem) != ("down", problem):
                log.warning("a server is down", extra={"facts": {**facts, "why": problem}})
            endpoint.state, endpoint.problem = "down", problem
            endpoint.recent.clear()
            for reader in list(endpoint.readers):
                reader.cancel()
            if self._all_down:
                for job in self.queue.clear():
                    job.chunks.put_nowait(UnavailableError(NONE_UP))
        elif endpoint.up and not was_up:
            log.info("a server is up", extra={"facts": facts})
        self._dispatch()
        async with self._changed:
            self._changed.notify_all()

    # ---- jobs

    def submit(self, jobs: Sequence[Job]) -> None:
        """Put jobs into the queue (raises BusyError, UnavailableError)."""
        if self._stopped:
            raise UnavailableError(STOPPED)
        if self._all_down:
            raise UnavailableError(NONE_UP)
        self.queue.push(*jobs)
        self._dispatch()

    def cancel(self, job: Job) -> None:
        """Take a job out of the queue, or off its server."""
        job.cancelled = True
        if not self.queue.remove(job) and job.task is not None:
            job.task.cancel()

    def _dispatch(self) -> None:
        for job in self.queue.in_turn():
            endpoint = self._choose(job)
            if endpoint is None:
                return
            self.queue.take([job])
            self._assign(job, endpoint)
            job.task = asyncio.create_task(self._run(job, endpoint))
            self._tasks.add(job.task)
            job.task.add_done_callback(partial(self._done, job))

    def _choose(self, job: Job, other_than: Endpoint | None = None) -> Endpoint | None:
        """A server with room; for a retried job any other than it had."""
        able = [
            endpoint
            for endpoint in self.endpoints
            if endpoint.up
            and endpoint is not other_than
            and (other_than is not None or endpoint.running < self._max_rows)
        ]
        if not able:
            return None
        least = min(able, key=_load)
        holding = [endpoint for endpoint in able if job.content and job.content in endpoint.recent]
        best = min(holding, key=_load, default=least)
        return best if best.running <= least.running + SLACK else least

    @staticmethod
    def _assign(job: Job, endpoint: Endpoint) -> None:
        endpoint.assign(job.content)
        job.endpoint = endpoint

    @staticmethod
    def _release(job: Job) -> None:
        if job.endpoint is not None:
            job.endpoint.running -= 1
            job.endpoint = None

    def _done(self, job: Job, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._release(job)
        if not self._stopped:
            self._dispatch()

    async def _run(self, job: Job, endpoint: Endpoint) -> None:
        """Complete a job; its client gets the errors."""
        try:
            await self._answer(job, endpoint)
            self.queue.record_finished()
        except asyncio.CancelledError:
            if self._stopped and not job.cancelled:
                job.chunks.put_nowait(UnavailableError(STOPPED))
            raise
        except GistkitError as error:
            job.chunks.put_nowait(error)
        except Exception:
            log.exception("a job failed")
            job.chunks.put_nowait(UnavailableError(FAILED))

    async def _answer(self, job: Job, endpoint: Endpoint) -> None:
        """Read an answer, at the second attempt from another server."""
        for attempt in range(2):
            try:
                await self._read(job, endpoint)
                return
            except EndpointError as error:
                self._report(endpoint, error)
                self._release(job)
                other = None if job.seen or attempt else await self._other(job, endpoint)
                if other is None:
                    where = "in the middle of this answer" if job.seen else "at this request"
                    raise UnavailableError(f"the vLLM server failed {where}; try again") from error
            endpoint = other
            job.restart()
            self.retried += 1
            self._assign(job, endpoint)

    async def _read(self, job: Job, endpoint: Endpoint) -> None:
        """Read an answer in a task that `_update` can cancel when the server is down."""
        reader = asyncio.create_task(self._follow(job, endpoint))
        endpoint.readers.add(reader)
        try:
            await reader
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            if task.cancelling():
                raise
            raise BrokenError("it does not answer any more") from None
        finally:
            endpoint.readers.discard(reader)

    async def _follow(self, job: Job, endpoint: Endpoint) -> None:
        async with aclosing(endpoint.complete(job.body)) as chunks:
            async for chunk in chunks:
                job.push(chunk)
                self.tokens += len(chunk.tokens) * job.copies
                if job.answer.done and not chunk.finished:
                    return  # a stop string; closing the connection tells the server
                if chunk.finished and not job.answer.done:
                    raise EndpointError("its answer ended too early")

    async def _other(self, job: Job, endpoint: Endpoint) -> Endpoint | None:
        """Another server; where none is up, any that comes up soon."""
        found = self._choose(job, other_than=endpoint)
        if found is not None or endpoint.up:
            return found
        try:
            async with asyncio.timeout(GRACE), self._changed:
                await self._changed.wait_for(lambda: self.up > 0)
        except TimeoutError:
            return None
        return self._choose(job, other_than=endpoint) or (endpoint if endpoint.up else None)

    @staticmethod
    def _report(endpoint: Endpoint, error: EndpointError) -> None:
        level = logging.WARNING if endpoint.up else logging.DEBUG  # once, not for every answer
        log.log(level, "a server failed", extra={"facts": {"url": endpoint.url, "why": str(error)}})
        if isinstance(error, BrokenError | WrongServerError):
            endpoint.suspect(str(error))


def _load(endpoint: Endpoint) -> tuple[int, int]:
    return endpoint.running, endpoint.served
