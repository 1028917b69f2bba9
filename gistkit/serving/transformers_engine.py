"""The transformers engine: one loaded model in this process.

TransformersEngine ── stream ──> Worker (one thread decodes all requests)
                   ── compress, measure ──> GistJobs (threads of their own)
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

from gistkit.errors import OptionError, PromptError
from gistkit.fidelity import measure_fidelity, with_fidelity
from gistkit.gist import Gist
from gistkit.model import GistModel
from gistkit.models.inputs import check_numbers
from gistkit.serving.engine import LONG_TEXT, Engine, Prepared, StreamChunk, check_k
from gistkit.serving.scheduler import Request, Scheduler
from gistkit.serving.worker import Worker
from gistkit.single_flight import SingleFlight
from gistkit.store import GistKey, GistStore

KEYS = 256  # instructions whose gist key is remembered

T = TypeVar("T")


class TransformersEngine(Engine):
    """An engine on one loaded model (raises OptionError: a number below one).

    Args:
        model: nothing else may generate with it.
        store: holds the gists; the caller closes it.
        max_waiting: requests in the queue, and instructions waiting to be compressed.
        max_rows: answers decoded at once.
        max_length: tokens of a prompt and its answer together, and of an instruction with its gist
            tokens; the model's positions may allow less. A pass takes memory by their square.
        kv_limit: bytes of keys and values of all answers together; default: half of what is free on
            the GPU, 2 GiB on a CPU.
    """

    def __init__(
        self,
        model: GistModel,
        store: GistStore,
        *,
        name: str = "gistkit",
        max_waiting: int = 256,
        max_rows: int = 64,
        max_length: int = 16_384,
        kv_limit: int | None = None,
    ) -> None:
        check_numbers(max_waiting=max_waiting, max_rows=max_rows)
        check_numbers(max_length=max_length, kv_limit=kv_limit or 1)
        super().__init__(model, name=name, max_length=max_length)
        self.store, self.max_rows = store, max_rows
        self.kv_bytes_per_token = model.adapter.kv_bytes_per_token
        self.kv_limit = _default_kv_limit(model.device) if kv_limit is None else kv_limit
        scheduler = Scheduler(
            max_rows=max_rows,
            max_tokens=self.kv_limit // self.kv_bytes_per_token,
            rows_join=model.adapter.rows_join,
            rows_differ=model.adapter.rows_differ,
        )
        self._worker = Worker(model, scheduler, max_waiting=max_waiting)
        self._jobs = GistJobs(
            model,
            store,
            max_length=self.max_length,
            max_waiting=max_waiting,
            retry_after=self._worker.queue.seconds_until_room,
        )
        self._stopped = False

    async def start(self) -> None:
        await asyncio.to_thread(lambda: self.fingerprint)  # slow, and cached
        self._worker.start(asyncio.get_running_loop())

    async def stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        await asyncio.to_thread(self._worker.stop)
        await self._jobs.stop()

    async def compress(
        self, instruction: str, num_gist_tokens: int | None = None
    ) -> tuple[str, Gist]:
        return await self._jobs.compress(instruction, num_gist_tokens)

    async def measure(
        self, gist_id: str, instruction: str, probes: Sequence[str]
    ) -> Mapping[str, object]:
        return await self._jobs.measure(gist_id, instruction, probes)

    def check_prepared(self, prepared: Prepared) -> None:
        n = prepared.sampling.n
        if n > self.max_rows:
            raise OptionError(f"n must be at most {self.max_rows}, not {n}")
        super().check_prepared(prepared)
        if not self._worker.scheduler.fits_alone(prepared):
            raise PromptError(
                f"this request needs {prepared.kv_bytes * n} bytes of keys and values, and the "
                f"engine has {self.kv_limit}; shorten the prompt, or lower max_tokens or n"
            )

    async def stream(
        self, prepared: Prepared, *, whole: bool = False
    ) -> AsyncGenerator[StreamChunk, None]:
        request = Request(prepared)
        self._worker.submit(request)
        try:
            left = prepared.sampling.n
            while left:
                for chunk in _join_chunks(await request.chunks.get(), request.chunks):
                    if isinstance(chunk, Exception):
                        raise chunk
                    left -= chunk.finish is not None
                    yield chunk
        finally:
            self._worker.cancel(request)

    @property
    def healthy(self) -> bool:
        return not self._worker.stopped

    def stats(self) -> Mapping[str, float]:
        worker = self._worker
        return {
            "running": worker.running,
            "waiting": worker.queue.size,
            "kv_bytes": worker.reserved * self.kv_bytes_per_token,
            "kv_limit": self.kv_limit,
            "steps": worker.steps,
            "tokens": worker.tokens,
        }


class GistJobs:
    """Compresses and measures with a model in this process.

    The passes run in threads of their own. They write nothing that the decoding thread reads
    (weights are only read, T5's hooks are guarded by its adapter's lock), so a long new instruction
    does not hold up running answers. The store compresses one instruction at a time, and one gist
    is measured at a time.

    Args:
        max_length: tokens of an instruction with its gist tokens; None: what the model can place.
    """

    def __init__(
        self,
        model: GistModel,
        store: GistStore,
        *,
        max_length: int | None = None,
        max_waiting: int,
        retry_after: Callable[[], float],
    ) -> None:
        self._model, self._store, self._max_length = model, store, max_length
        self._cached_key = lru_cache(KEYS)(self._key)
        self._flights = SingleFlight(max_waiting, retry_after)
        self._compressing = ThreadPoolExecutor(4, thread_name_prefix="gistkit compress")
        self._measuring = ThreadPoolExecutor(1, thread_name_prefix="gistkit measure")

    async def compress(
        self, instruction: str, num_gist_tokens: int | None = None
    ) -> tuple[str, Gist]:
        if len(instruction) > LONG_TEXT:
            key = await asyncio.to_thread(self._key, instruction, num_gist_tokens)
        else:
            key = self._cached_key(instruction, num_gist_tokens)
        gist = self._store.held(key)
        if gist is None:
            k = key.num_tokens
            gist = await self._run(
                key.id,
                self._compressing,
                lambda: self._store.get_or_compress(self._model, instruction, num_gist_tokens=k),
            )
        return key.id, gist

    async def measure(
        self, gist_id: str, instruction: str, probes: Sequence[str]
    ) -> Mapping[str, object]:
        given = tuple(probes)

        def work() -> Mapping[str, object]:
            gist = self._store.load(gist_id)
            found = measure_fidelity(
                self._model, instruction, gist.to(device=self._model.device), probes=given or None
            )
            self._store.update(gist_id, with_fidelity(gist, found))
            return found.to_json()

        return await self._run(("measure", gist_id, instruction, given), self._measuring, work)

    async def stop(self) -> None:
        """Cancel what has not begun; returns when the rest has ended."""
        self._flights.stop()
        for pool in (self._compressing, self._measuring):
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)

    def _key(self, instruction: str, num_gist_tokens: int | None) -> GistKey:
        """The key of an instruction's gist (raises OptionError, PromptError)."""
        k = check_k(self._model, num_gist_tokens)
        key = GistKey.of(self._model, instruction, k)
        tokens = len(key.tokens) + k
        if self._max_length is not None and tokens > self._max_length:
            raise PromptError(
                f"instruction and gist have {tokens} tokens, more than the {self._max_length} "
                "allowed here; shorten the instruction"
            )
        return key

    async def _run(self, key: object, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        """The store also works once for all threads; here callers wait without a thread."""
        loop = asyncio.get_running_loop()
        return await self._flights.wait(key, lambda: loop.run_in_executor(pool, work))


def _join_chunks(
    first: StreamChunk | Exception, queue: "asyncio.Queue[StreamChunk | Exception]"
) -> list[StreamChunk | Exception]:
    """All that is in the queue, the chunks of an answer joined: each chunk costs its readers."""
    joined: dict[int, StreamChunk] = {}
    chunk: StreamChunk | Exception = first
    while not isinstance(chunk, Exception):
        before = joined.get(chunk.index)
        joined[chunk.index] = chunk if before is None else before + chunk
        if queue.empty():
            return list(joined.values())
        chunk = queue.get_nowait()
    return [*joined.values(), chunk]


def _default_kv_limit(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2 * 2**30
