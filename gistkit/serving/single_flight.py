"""Work that is done once for all who ask for the same meanwhile, and bounded.

Knows nothing of what is done.
"""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from gistkit.errors import BusyError, UnavailableError

STOPPED = "the server is stopping; ask again in a while"

T = TypeVar("T")


class Once:
    """Jobs by name, on one event loop.

    Args:
        most: jobs at once, waiting ones included.
        seconds: after how long to ask again where there are too many.
    """

    def __init__(self, most: int, seconds: Callable[[], float]) -> None:
        self._most, self._seconds = most, seconds
        self._jobs: dict[object, asyncio.Future[Any]] = {}
        self._stopped = False

    async def run(self, name: object, begin: Callable[[], "asyncio.Future[T]"]) -> T:
        """What the job called `name` gives; `begin` starts it where nobody has.

        Raises:
            BusyError: too many jobs.
            UnavailableError: after `stop`.
            Exception: what the job raises.
        """
        if self._stopped:
            raise UnavailableError(STOPPED)
        job = self._jobs.get(name)
        if job is None:
            if len(self._jobs) >= self._most:
                message = f"{len(self._jobs)} instructions are waiting already"
                raise BusyError(message, self._seconds())
            job = begin()
            self._jobs[name] = job
            job.add_done_callback(lambda done: self._done(name, done))
        try:
            found: T = await asyncio.shield(job)  # others may wait for it, too
            return found
        except asyncio.CancelledError:
            if job.cancelled():
                raise UnavailableError(STOPPED) from None
            raise

    def stop(self) -> None:
        """No new jobs; those that can still be cancelled are."""
        self._stopped = True
        for job in list(self._jobs.values()):
            job.cancel()

    def _done(self, name: object, job: "asyncio.Future[Any]") -> None:
        del self._jobs[name]
        if not job.cancelled():
            job.exception()  # looked at, though everybody who asked may be gone
