"""The thread that decodes: it admits waiting requests, steps all rows and sends their chunks.

    event loop ── submit, cancel ──> Worker: schedule ──> Batch: begin ──> [sample ──> step] ...
               <────────────────── chunks ─────────────────────────────────────┘

Only this thread touches rows. It holds the lock to look at the queue, never while it computes, so
the event loop does not wait for a step.

Shapes: B rows.
"""

import asyncio
import gc
import logging
import threading
from collections.abc import Callable, Collection
from collections.abc import Sequence as Seq
from contextlib import suppress
from functools import partial
from typing import Self

import torch

from gistkit.errors import BusyError, UnavailableError
from gistkit.gist import Gist
from gistkit.model import GistModel
from gistkit.models.kv_batch import KVBatch
from gistkit.serving.engine import StreamChunk
from gistkit.serving.sampling import Sequence, sample
from gistkit.serving.scheduler import FairQueue, Request, Scheduler
from gistkit.single_flight import STOPPED

log = logging.getLogger(__name__)

FAILED = "the engine failed at this request; try again"

Chunks = list[tuple[Request, StreamChunk | Exception]]


class Batch:
    """B sequences that are decoded together, and their rows in the model.

    Attributes:
        columns: tokens of the longest row at its end; reserved for every row.
    """

    def __init__(self, rows: KVBatch, sequences: list[Sequence], *, shrinks: bool) -> None:
        self._rows, self.sequences, self._shrinks = rows, sequences, shrinks
        self.columns = max(s.request.prepared.total_tokens for s in sequences)
        self._tokens: list[int] = []

    @classmethod
    def begin(cls, model: GistModel, requests: Seq[Request], end_ids: Collection[int]) -> Self:
        """Read each prompt once, all in one pass: all with a gist, or all without."""
        prompts = [request.prepared for request in requests]
        ids, padding = model.pad([prompt.ids for prompt in prompts])
        gists = [p.gist.to(device=ids.device) for p in prompts if p.gist is not None]
        prefix = Gist.stack(gists) if gists else None
        rows = model.adapter.begin(ids, padding, prefix, gist_id=model.gist_id)
        owners = [row for row, prompt in enumerate(prompts) for _ in range(prompt.sampling.n)]
        if len(owners) > len(requests):
            rows.repeat(owners)
        sequences = [
            Sequence(request, index, model.tokenizer, end_ids)
            for request in requests
            for index in range(request.prepared.sampling.n)
        ]
        return cls(rows, sequences, shrinks=model.adapter.rows_join)

    @property
    def requests(self) -> list[Request]:
        return list(dict.fromkeys(sequence.request for sequence in self.sequences))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns that memory is reserved for."""
        return len(self.sequences), self.columns

    def join(self, other: Self) -> None:
        """Add the rows of another batch (if the family's rows can join)."""
        self._rows.join(other._rows)
        self.sequences += other.sequences
        self.columns = max(self.columns, other.columns)

    def sample(self) -> Chunks:
        self._tokens, chunks = sample(self._rows.logits, self.sequences)
        pairs = zip(self.sequences, chunks, strict=True)
        return [(sequence.request, chunk) for sequence, chunk in pairs if chunk is not None]

    def step(self) -> None:
        """Drop finished sequences, and predict what follows the tokens just sampled."""
        self.drop([row for row, sequence in enumerate(self.sequences) if sequence.done])
        if self.sequences:
            self._rows.step(torch.tensor(self._tokens, device=self._rows.logits.device))
        self._tokens = []

    def drop(self, rows: Seq[int]) -> None:
        if not rows:
            return
        order = self._rows.drop(rows)
        self.sequences = [self.sequences[row] for row in order]
        self._tokens = [self._tokens[row] for row in order] if self._tokens else []
        if self.sequences and self._shrinks:
            self.columns = max(s.request.prepared.total_tokens for s in self.sequences)

    def drop_cancelled(self) -> None:
        self.drop([row for row, s in enumerate(self.sequences) if s.request.cancelled])


class Worker:
    """The decoding thread of one model; nothing else decodes with it.

    Attributes:
        reserved: tokens of keys and values that memory is reserved for.
        steps, tokens: since the start.
    """

    def __init__(self, model: GistModel, scheduler: Scheduler, *, max_waiting: int) -> None:
        self.scheduler = scheduler
        self.running = self.reserved = self.steps = self.tokens = 0
        self.stopped = False
        self.queue = FairQueue[Request](max_waiting)
        self._model, self._end_ids = model, frozenset(model.end_tokens)
        self._batches: list[Batch] = []
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="gistkit engine", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to work; chunks are delivered on `loop`."""
        self._loop = loop
        self._thread.start()

    def stop(self) -> None:
        """End all requests with an UnavailableError; returns when the thread has ended."""
        with self._changed:
            self.stopped = True
            self._changed.notify()
        if self._thread.ident is not None:  # it was started
            self._thread.join()

    def submit(self, request: Request) -> None:
        """Queue a request (raises BusyError: the queue is full; UnavailableError: stopped)."""
        with self._changed:
            if self.stopped:
                raise UnavailableError(STOPPED)
            self.queue.push(request)
            self._changed.notify()

    def cancel(self, request: Request) -> None:
        """The caller has left: out of the queue at once, or out of its batch before a step."""
        with self._changed:
            request.cancelled = True
            self.queue.remove(request)

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._wait():
                    self._for_each(Batch.drop_cancelled)
                    self._admit()
                    self._for_each(self._step)
                    self._count()
        except BaseException:
            log.exception("the engine's thread ended")
        finally:
            with self._changed:
                self.stopped = True
                left = self.queue.clear()
            for batch in self._batches:
                left += batch.requests
            self._batches = []
            self._count()
            self._send([(request, UnavailableError(STOPPED)) for request in left])

    def _wait(self) -> bool:
        """Until there is something to do; False: stop."""
        with self._changed:
            while not (self.stopped or self._batches or self.queue.size):
                self._changed.wait()
            return not self.stopped

    def _admit(self) -> None:
        if not self.queue.size:
            return
        with self._changed:
            shapes = [batch.shape for batch in self._batches]
            groups = self.scheduler.schedule(self.queue.in_turn(), shapes)
            self.queue.take([request for group in groups for request in group])
        for group in groups:
            self._begin(group)
        self._count()

    def _begin(self, group: list[Request]) -> None:
        begun: list[Batch] = []

        def begin() -> None:
            begun.append(Batch.begin(self._model, group, self._end_ids))

        if not self._attempt(group, begin):
            return
        if not (self.scheduler.rows_join and self._batches):
            self._batches += begun
            return
        (running,), (new,) = self._batches, begun
        # a join that fails half way leaves no row whole, so all requests fail
        if not self._attempt(running.requests + group, lambda: running.join(new)):
            self._batches = []

    def _step(self, batch: Batch) -> None:
        self.steps += 1
        self.tokens += len(batch.sequences)
        chunks = batch.sample()
        self._send(chunks)  # they travel while the model computes
        if finished := sum(sequence.done for sequence in batch.sequences):
            self.queue.record_finished(finished)
        batch.step()

    def _for_each(self, work: Callable[[Batch], None]) -> None:
        """Do something with every batch; batches that fail or are empty afterwards are removed."""
        for batch in list(self._batches):
            if not self._attempt(batch.requests, partial(work, batch)) or not batch.sequences:
                self._batches.remove(batch)

    def _attempt(self, requests: list[Request], work: Callable[[], None]) -> bool:
        """Whether `work` succeeded; if not, these requests fail, and only these."""
        error: Exception
        try:
            work()
            return True
        except (torch.OutOfMemoryError, MemoryError):
            log.exception("out of memory with %d requests", len(requests))
            seconds = self.queue.seconds_until_room()
            error = BusyError("the engine ran out of memory; try again later", seconds)
        except Exception:
            log.exception("a step failed with %d requests", len(requests))
            error = UnavailableError(FAILED)
        self._send([(request, error) for request in requests])
        gc.collect()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        return False

    def _send(self, chunks: Chunks) -> None:
        """Put chunks into the queues of their requests, on the event loop."""

        def deliver() -> None:
            for request, chunk in chunks:
                request.chunks.put_nowait(chunk)

        assert self._loop is not None
        if chunks:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(deliver)

    def _count(self) -> None:
        self.running = sum(len(batch.requests) for batch in self._batches)
        self.reserved = sum(rows * columns for rows, columns in (b.shape for b in self._batches))
