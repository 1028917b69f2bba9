"""The transformers engine: gists served by transformers in this process, and nothing else.

TransformersEngine ── answer ──> Worker (one thread: all rows of all requests, step by step)
         ── compress, measure ──> Local (a few threads of their own)
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress

import torch

from gistkit.errors import OptionError, PromptError
from gistkit.gist import Gist
from gistkit.model import GistModel
from gistkit.models.inputs import check_numbers
from gistkit.serving.admission import Limits
from gistkit.serving.engine import Delta, Engine, Prompt, Sampling, Size
from gistkit.serving.local import Local, aside
from gistkit.serving.prepare import Reader
from gistkit.serving.requests import Request
from gistkit.serving.worker import Worker
from gistkit.store import GistStore

MAX_WAITING = 256
MAX_ROWS = 64
MAX_LENGTH = 16_384
"""Tokens. A pass takes memory by their square (its mask), and some models have no last position."""
KV_LIMIT = 2 * 2**30
"""Bytes of keys and values where nobody says how many, and the model is on the CPU."""


class TransformersEngine(Engine):
    """An engine on one loaded model.

    Args:
        model: nobody else generates with it.
        store: where gists are kept; the caller closes it.
        name: the model's id as clients know it.
        max_waiting: requests in the queue, and instructions waiting to be compressed.
        max_rows: answers decoded at once.
        max_length: tokens of a prompt and its answer together, and of an instruction with its gist
            tokens; the model's positions may allow less.
        kv_limit: bytes of keys and values that answers may take together; default: half of what is
            free on the GPU, 2 GiB on a CPU.

    Raises:
        OptionError: a number below one.
    """

    def __init__(
        self,
        model: GistModel,
        store: GistStore,
        *,
        name: str = "gistkit",
        max_waiting: int = MAX_WAITING,
        max_rows: int = MAX_ROWS,
        max_length: int = MAX_LENGTH,
        kv_limit: int | None = None,
    ) -> None:
        check_numbers(max_waiting=max_waiting, max_rows=max_rows)
        check_numbers(max_length=max_length, kv_limit=kv_limit or 1)
        self.name = name
        self.model, self.store = model, store
        self.trained = model.config.num_gist_tokens or (model.config.default_k,)
        self._reader = Reader(model, max_length=max_length, prompts=max_waiting)
        self.max_length = self._reader.max_length
        self.max_rows = max_rows
        self.max_waiting = max_waiting
        self.kv_limit = _free(model.device) if kv_limit is None else kv_limit
        limits = Limits(
            rows=max_rows,
            cells=self.kv_limit // model.adapter.kv_bytes_per_token,
            join=model.adapter.rows_join,
            differ=model.adapter.rows_differ,
        )
        self._worker = Worker(model, limits, max_waiting=max_waiting, post=self._post)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._local = Local(
            model,
            store,
            max_length=self.max_length,
            max_waiting=max_waiting,
            seconds=self._worker.seconds_until_room,
        )
        self._stopped = False

    async def start(self) -> None:
        """See `Engine.start`."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(lambda: self._reader.fingerprint)  # takes a while, once
        self._worker.start()

    async def stop(self) -> None:
        """See `Engine.stop`."""
        if self._stopped:
            return
        self._stopped = True
        await asyncio.to_thread(self._worker.stop)
        await self._local.stop()

    async def compress(
        self, instruction: str, num_gist_tokens: int | None = None
    ) -> tuple[str, Gist]:
        """See `Engine.compress`."""
        return await self._local.compress(instruction, num_gist_tokens)

    async def measure(
        self, id: str, instruction: str, probes: Sequence[str]
    ) -> Mapping[str, object]:
        """See `Engine.measure`."""
        return await self._local.measure(id, instruction, probes)

    def size(self, prompt: Prompt, gist: Gist | None, sampling: Sampling) -> Size:
        """See `Engine.size`."""
        request = self._reader.request(prompt, gist, sampling)
        return Size(
            tokens=request.kept + len(request.ids),
            cached=request.kept,
            kv_bytes=request.columns * self.model.adapter.kv_bytes_per_token,
        )

    async def answer(
        self,
        prompt: Prompt,
        gist: Gist | None,
        sampling: Sampling,
        *,
        client: str = "",
        id: str = "",
        whole: bool = False,
    ) -> AsyncGenerator[Delta, None]:
        """See `Engine.answer`."""
        request = await aside(
            prompt.characters, lambda: self._reader.request(prompt, gist, sampling, client)
        )
        self._check_room(request)
        self._worker.submit(request)
        try:
            left = sampling.n
            while left:
                for said in _together(await request.out.get(), request.out):
                    if isinstance(said, Exception):
                        raise said
                    left -= said.finish is not None
                    yield said
        finally:
            self._worker.cancel(request)

    @property
    def works(self) -> bool:
        """See `Engine.works`."""
        return not self._worker.ended

    def stats(self) -> Mapping[str, float]:
        """See `Engine.stats`."""
        worker = self._worker
        return {
            "running": worker.running,
            "waiting": worker.waiting,
            "kv_bytes": worker.cells * self.model.adapter.kv_bytes_per_token,
            "kv_limit": self.kv_limit,
            "steps": worker.steps,
            "tokens": worker.tokens,
        }

    def _check_room(self, request: Request) -> None:
        if request.sampling.n > self.max_rows:
            raise OptionError(f"n must be at most {self.max_rows}, not {request.sampling.n}")
        if not self._worker.limits.fits_alone(request):
            wanted = request.columns * request.sampling.n * self.model.adapter.kv_bytes_per_token
            raise PromptError(
                f"this request needs {wanted} bytes of keys and values, and the engine has "
                f"{self.kv_limit}; shorten the prompt, or lower max_tokens or n"
            )

    def _post(self, said: list[tuple[Request, Delta | Exception]]) -> None:
        """Hand out what the worker's thread has to say, on the event loop."""

        def hand_out() -> None:
            for request, one in said:
                request.out.put_nowait(one)

        assert self._loop is not None
        if said:
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                self._loop.call_soon_threadsafe(hand_out)


def _together(
    first: Delta | Exception, others: "asyncio.Queue[Delta | Exception]"
) -> list[Delta | Exception]:
    """What is there already, pieces of one answer joined: every piece costs its listeners."""
    joined: dict[int, Delta] = {}
    said: Delta | Exception = first
    while not isinstance(said, Exception):
        before = joined.get(said.index)
        joined[said.index] = said if before is None else before + said
        if others.empty():
            return list(joined.values())
        said = others.get_nowait()
    return [*joined.values(), said]


def _free(device: torch.device) -> int:
    """Bytes for keys and values where nobody says how many."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else KV_LIMIT
