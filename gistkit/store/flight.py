"""The same work asked for by many threads at once is done once. Knows nothing about gists."""

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Threads that ask under one name while one of them works get its result, or its error."""

    def __init__(self) -> None:
        self._flights: dict[str, Future[T]] = {}
        self._lock = threading.Lock()

    def run(self, name: str, work: Callable[[], T]) -> T:
        """What `work` returns here, or in the thread that is at it already; raises what it does."""
        while True:
            with self._lock:
                flight = self._flights.get(name)
                if flight is None:
                    ours = self._flights[name] = Future()
                    break
            try:
                return flight.result()
            except CancelledError:  # whoever was at it was interrupted
                continue
        try:
            result = work()
            ours.set_result(result)
        except Exception as error:
            ours.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._flights[name]
            ours.cancel()  # does nothing to one that has its result
        return result
