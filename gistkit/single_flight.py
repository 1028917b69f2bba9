"""Work that is requested several times at once is done once.

flights.run(key, work)              threads: the first caller works, the others wait
await flights.wait(key, start)      an event loop: `start` begins a future, all await it
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from gistkit.errors import BusyError, UnavailableError

STOPPED = "the server is stopping; try again later"

T = TypeVar("T")


class SingleFlight:
    """Jobs in progress, by key. Callers of a key share its job's result or error.

    Args:
        limit: jobs at once for `wait`; None: any number.
        retry_after: seconds that a refused caller is told to wait.
    """

    def __init__(
        self, limit: int | None = None, retry_after: Callable[[], float] = lambda: 1.0
    ) -> None:
        self._limit, self._retry_after = limit, retry_after
        self._jobs: dict[object, Any] = {}
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, key: object, work: Callable[[], T]) -> T:
        """What `work` returns, or the thread that is already doing it; raises what it raises."""
        own: Future[T] = Future()
        while (job := self._join(key, lambda: own)) is not own:
            try:
                found: T = job.result()
                return found
            except CancelledError:  # that thread was interrupted
                continue
        try:
            result = work()
            own.set_result(result)
        except Exception as error:
            own.set_exception(error)
            raise
        finally:
            self._forget(key)
            own.cancel()  # has no effect on a future with a result
        return result

    async def wait(self, key: object, start: Callable[[], "asyncio.Future[T]"]) -> T:
        """The result of the job `key`, which `start` begins if it is not in progress.

        A caller that is cancelled leaves the job running for the others.

        Raises:
            BusyError, UnavailableError: too many jobs; after `stop`.
            Exception: what the job raises.
        """
        if self._stopped:
            raise UnavailableError(STOPPED)
        if self._limit is not None and key not in self._jobs and len(self._jobs) >= self._limit:
            message = f"{len(self._jobs)} instructions are already waiting"
            raise BusyError(message, self._retry_after())

        def begin() -> "asyncio.Future[T]":
            job = start()
            job.add_done_callback(lambda done: self._ended(key, done))
            return job

        job = self._join(key, begin)
        try:
            found: T = await asyncio.shield(job)
            return found
        except asyncio.CancelledError:
            if job.cancelled():
                raise UnavailableError(STOPPED) from None
            raise

    def stop(self) -> None:
        """Refuse new jobs, and cancel those that can still be cancelled."""
        self._stopped = True
        for job in list(self._jobs.values()):
            job.cancel()

    def _join(self, key: object, start: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._jobs:
                self._jobs[key] = start()
            return self._jobs[key]

    def _forget(self, key: object) -> None:
        with self._lock:
            del self._jobs[key]

    def _ended(self, key: object, job: "asyncio.Future[Any]") -> None:
        self._forget(key)
        if not job.cancelled():
            job.exception()  # marks it as retrieved, even if all callers have left
