"""Which server answers what: the least loaded of those that have the gist at hand.

    submit ──> FairQueue ── room on a server ──> its answer is read ──> Job.chunks

A server has at hand what it was asked for lately; one with much less to do is preferred all the
same, and then has it, too. What fails before anybody saw a piece of it begins anew, once, on
another server.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial

from gistkit.errors import GistkitError, UnavailableError
from gistkit.serving.scheduler import FairQueue, Throughput
from gistkit.serving.vllm.client import Endpoint
from gistkit.serving.vllm.job import Job
from gistkit.serving.vllm.wire import BrokenError, EndpointError, StrangerError
from gistkit.single_flight import STOPPED

log = logging.getLogger(__name__)

SLACK = 8
"""Answers more than on the least loaded server, for the sake of a gist at hand."""

GRACE = 5.0
"""Seconds to wait for another server, where there is none at the moment."""

NOBODY = "no vLLM server is there at the moment; ask again in a while"
FAILED = "the engine failed at this request; ask again"


class Balancer:
    """Jobs and servers, on one event loop.

    Args:
        max_rows: answers at once on one server.
        max_waiting: jobs in the queue.

    Attributes:
        running: answers that servers are giving.
        retried: jobs that began anew.
        tokens: told since the start.
    """

    def __init__(self, endpoints: Sequence[Endpoint], *, max_rows: int, max_waiting: int) -> None:
        self.endpoints = endpoints
        self.retried = self.tokens = 0
        self._max_rows, self._most = max_rows, max_waiting
        self._waiting = FairQueue[Job]()
        self._tasks: set[asyncio.Task[None]] = set()
        self._throughput = Throughput()
        self._came = asyncio.Condition()
        self._stopped = False

    @property
    def running(self) -> int:
        """Answers that servers are giving."""
        return sum(one.running for one in self.endpoints)

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._waiting)

    @property
    def up(self) -> int:
        """Servers that get requests."""
        return sum(one.up for one in self.endpoints)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Line up.

        Raises:
            BusyError: the queue is full.
            UnavailableError: no server is there, or this one is stopping.
        """
        if self._stopped:
            raise UnavailableError(STOPPED)
        if self._all_gone:
            raise UnavailableError(NOBODY)
        if len(self._waiting) + len(jobs) > self._most:
            raise self._throughput.busy(len(self._waiting))
        for job in jobs:
            self._waiting.push(job)
        self._serve()

    def cancel(self, job: Job) -> None:
        """Nobody listens to it any more: out of the queue, or off its server."""
        job.cancelled = True
        if not self._waiting.remove(job) and job.task is not None:
            job.task.cancel()

    async def changed(self) -> None:
        """A server is back, or gone."""
        if self._all_gone:
            for request in self._waiting.clear():
                request.chunks.put_nowait(UnavailableError(NOBODY))
        self._serve()
        async with self._came:
            self._came.notify_all()

    async def stop(self) -> None:
        """End all that runs and waits with an UnavailableError."""
        self._stopped = True
        for request in self._waiting.clear():
            request.chunks.put_nowait(UnavailableError(STOPPED))
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def seconds_until_room(self) -> float:
        """How long the queue takes, going by the last answers."""
        return self._throughput.seconds_until_room(self.waiting)

    @property
    def _all_gone(self) -> bool:
        return all(one.state == "gone" for one in self.endpoints)

    def _serve(self) -> None:
        """Give jobs to servers, as long as there is room."""
        for request in self._waiting.in_turn():
            endpoint = self._pick(request)
            if endpoint is None:
                return
            self._waiting.take([request])
            self._give(request, endpoint)
            request.task = asyncio.create_task(self._work(request, endpoint))
            self._tasks.add(request.task)
            request.task.add_done_callback(partial(self._done, request))

    @staticmethod
    def _give(job: Job, endpoint: Endpoint) -> None:
        endpoint.take(job.what)
        job.endpoint = endpoint

    @staticmethod
    def _free(job: Job) -> None:
        if job.endpoint is not None:
            job.endpoint.running -= 1
            job.endpoint = None

    def _done(self, job: Job, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._free(job)
        if not self._stopped:
            self._serve()

    def _pick(self, job: Job, but: Endpoint | None = None) -> Endpoint | None:
        """A server with room; for a job that begins anew, any other than it had."""
        able = [
            one
            for one in self.endpoints
            if one.up and one is not but and (but is not None or one.running < self._max_rows)
        ]
        if not able:
            return None
        least = min(able, key=_load)
        holding = [one for one in able if job.what and job.what in one.held]
        best = min(holding, key=_load, default=least)
        return best if best.running <= least.running + SLACK else least

    async def _work(self, job: Job, endpoint: Endpoint) -> None:
        """See a job to its end, whatever that is."""
        try:
            try:
                await self._read(job, endpoint)
            except EndpointError as error:
                self._note(endpoint, error)
                self._free(job)
                other = None if job.told else await self._other(job, endpoint)
                if other is None:
                    raise _over(job, error) from error
                job.again()
                self.retried += 1
                self._give(job, other)
                try:
                    await self._read(job, other)
                except EndpointError as second:
                    self._note(other, second)
                    raise _over(job, second) from second
            self._throughput.record()
        except asyncio.CancelledError:
            if self._stopped and not job.cancelled:
                job.chunks.put_nowait(UnavailableError(STOPPED))
            raise
        except GistkitError as error:
            job.chunks.put_nowait(error)
        except Exception:
            log.exception("a job failed")
            job.chunks.put_nowait(UnavailableError(FAILED))

    async def _read(self, job: Job, endpoint: Endpoint) -> None:
        """Read an answer; whoever sees that the server is gone cancels `endpoint.readings`."""
        reading = asyncio.create_task(self._follow(job, endpoint))
        endpoint.readings.add(reading)
        try:
            await reading
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            if task.cancelling():
                raise
            raise BrokenError("it does not answer any more") from None
        finally:
            endpoint.readings.discard(reading)

    async def _follow(self, job: Job, endpoint: Endpoint) -> None:
        async with aclosing(endpoint.ask(job.body)) as parts:
            async for said in parts:
                job.take(said)
                self.tokens += len(said.tokens) * job.copies
                if job.answer.done and not said.ended:
                    return  # a stop string; the server is told by the connection's end
                if said.ended and not job.answer.done:
                    raise EndpointError("its answer ended before its end")

    async def _other(self, job: Job, endpoint: Endpoint) -> Endpoint | None:
        """Another server; or, where there is none at the moment, whoever is there in a while."""
        found = self._pick(job, but=endpoint)
        if found is not None or endpoint.up:
            return found
        try:
            async with asyncio.timeout(GRACE), self._came:
                await self._came.wait_for(lambda: self.up > 0)
        except TimeoutError:
            return None
        return self._pick(job, but=endpoint) or (endpoint if endpoint.up else None)

    @staticmethod
    def _note(endpoint: Endpoint, error: EndpointError) -> None:
        level = logging.WARNING if endpoint.up else logging.DEBUG  # once, not for every answer
        log.log(level, "a server failed", extra={"facts": {"url": endpoint.url, "why": str(error)}})
        if isinstance(error, BrokenError | StrangerError):
            endpoint.suspect(str(error))


def _load(endpoint: Endpoint) -> tuple[int, int]:
    return endpoint.running, endpoint.served


def _over(job: Job, error: EndpointError) -> UnavailableError:
    where = "in the middle of this answer" if job.told else "at this request"
    return UnavailableError(f"the vLLM server failed {where}; ask again")
