"""The thread that decodes: takes in who waits, steps all rows, hands out what they said.

    event loop ── submit, cancel ──> Waiting ── admit ──> Batch ── post ──> event loop

Only this thread touches rows. It holds the lock to look at the queue, never while it computes, so
the event loop does not wait for a step.
"""

import gc
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial

import torch

from gistkit.errors import BusyError, UnavailableError
from gistkit.model import GistModel
from gistkit.serving.admission import Limits
from gistkit.serving.batch import Batch
from gistkit.serving.engine import Delta
from gistkit.serving.queue import Waiting
from gistkit.serving.requests import Answer, Request
from gistkit.serving.single_flight import STOPPED

log = logging.getLogger(__name__)

Post = Callable[[list[tuple[Request, Delta | Exception]]], None]

FAILED = "the engine failed at this request; ask again"
RECENT = 64  # answers whose ends say how quick things are
LONGEST_WAIT = 60.0  # seconds that anybody is told to stay away


class Worker:
    """One model's thread.

    Args:
        model: only this thread decodes with it.
        limits: what there is room for.
        max_waiting: requests in the queue.
        post: takes what requests are to be told; called from the thread, must not block.

    Attributes:
        running: requests being answered.
        cells: tokens that memory is reserved for.
        steps, tokens: since the start.
    """

    def __init__(self, model: GistModel, limits: Limits, *, max_waiting: int, post: Post) -> None:
        self.limits = limits
        self.running = self.cells = self.steps = self.tokens = 0
        self._model, self._post = model, post
        self._ends = frozenset(model.end_tokens)
        self._waiting = Waiting(max_waiting)
        self._batches: list[Batch] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._ended: deque[float] = deque(maxlen=RECENT)
        self._thread = threading.Thread(target=self._run, name="gistkit engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End all requests with an UnavailableError; returns when the thread has ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:  # it was started
            self._thread.join()

    def submit(self, request: Request) -> None:
        """Line up (raises BusyError where the queue is full, UnavailableError after the end)."""
        with self._changed:
            if self._stopping:
                raise UnavailableError(STOPPED)
            if self._waiting.full:
                seconds = self.seconds_until_room()
                raise BusyError(
                    f"{len(self._waiting)} requests are waiting already; ask again in "
                    f"{seconds:.0f} s",
                    seconds,
                )
            self._waiting.push(request)
            self._changed.notify()

    def cancel(self, request: Request) -> None:
        """Nobody listens to it any more: out of the queue at once, or out of its batch."""
        with self._changed:
            request.cancelled = True
            self._waiting.remove(request)

    @property
    def ended(self) -> bool:
        """Whether it takes nothing any more."""
        return self._stopping

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        with self._changed:
            return len(self._waiting)

    def seconds_until_room(self) -> float:
        """How long the queue takes, going by the last requests."""
        ended = list(self._ended)
        if len(ended) < 2:
            return 1.0
        each = (ended[-1] - ended[0]) / (len(ended) - 1)
        return min(max(1.0, each * (1 + self.waiting)), LONGEST_WAIT)

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._wait():
                    self._turn()
        except BaseException:
            log.exception("the engine's thread ended")
        finally:
            with self._changed:
                self._stopping = True
                left = self._waiting.clear()
            for batch in self._batches:
                left += _requests(batch)
            self._batches = []
            self._count()
            self._post([(request, UnavailableError(STOPPED)) for request in left])

    def _wait(self) -> bool:
        """Until there is something to do; False: stop."""
        with self._changed:
            while not (self._stopping or self._batches or len(self._waiting)):
                self._changed.wait()
            return not self._stopping

    def _turn(self) -> None:
        self._each(self._forget)
        with self._changed:
            groups = self.limits.admit(self._waiting.in_turn(), self._batches)
            self._waiting.serve([request for group in groups for request in group])
        for group in groups:
            self._begin(group)
        self._count()
        self._each(self._step)
        self._count()

    def _each(self, work: Callable[[Batch], None]) -> None:
        """Do something with every batch; those that fail by it, or are empty then, are gone."""
        for batch in list(self._batches):
            if not self._guarded(_requests(batch), partial(work, batch)) or not batch.answers:
                self._batches.remove(batch)

    def _begin(self, group: list[Request]) -> None:
        begun: list[Batch] = []
        if not self._guarded(
            group, lambda: begun.append(Batch.begin(self._model, group, self._answer))
        ):
            return
        if not (self.limits.join and self._batches):
            self._batches += begun
            return
        (running,), (new,) = self._batches, begun
        # half way through, the rows that run are no longer whole: all of them are told
        if not self._guarded(_requests(running) + group, lambda: running.join(new)):
            self._batches = []

    def _forget(self, batch: Batch) -> None:
        batch.drop([row for row, one in enumerate(batch.answers) if one.request.cancelled])

    def _step(self, batch: Batch) -> None:
        self.steps += 1
        self.tokens += len(batch)
        said = batch.draw()
        self._post(list(said))  # while the model computes, these are sent
        now = time.monotonic()
        self._ended.extend(now for _, delta in said if delta.finish)
        batch.advance()

    def _answer(self, request: Request, index: int) -> Answer:
        decode = self._model.tokenizer.decode
        return Answer(
            request,
            index,
            decode=lambda ids: str(decode(ids, skip_special_tokens=True)),
            name=lambda ids: str(decode(ids)),
            ends=self._ends,
        )

    def _guarded(self, requests: list[Request], work: Callable[[], None]) -> bool:
        """Whether `work` went well; if not, these requests are told, and only these."""
        error: Exception
        try:
            work()
            return True
        except (torch.OutOfMemoryError, MemoryError):
            log.exception("out of memory with %d requests", len(requests))
            seconds = self.seconds_until_room()
            error = BusyError("the engine ran out of memory; ask again in a while", seconds)
        except Exception:
            log.exception("a step failed with %d requests", len(requests))
            error = UnavailableError(FAILED)
        self._post([(request, error) for request in requests])
        gc.collect()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        return False

    def _count(self) -> None:
        self.running = sum(len(_requests(batch)) for batch in self._batches)
        self.cells = sum(batch.cells for batch in self._batches)


def _requests(batch: Batch) -> list[Request]:
    """Whose answers are in a batch, each once."""
    return list(dict.fromkeys(answer.request for answer in batch.answers))
