"""Compressing and measuring with a model in this process.

Passes of their own, in a few threads: they write nothing that rows being decoded read (weights are
only read, T5's hooks live under its adapter's lock), so a long instruction seen for the first time
does not hold up answers under way. The store compresses one instruction at a time, and one gist is
measured at a time.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

from gistkit.errors import PromptError
from gistkit.fidelity import measure_fidelity, with_fidelity
from gistkit.gist import Gist
from gistkit.model import GistModel
from gistkit.serving.single_flight import Once
from gistkit.store import GistKey, GistStore

LONG_TEXT = 16_000
"""Characters that take the tokenizer some milliseconds."""

KEYS = 256
"""Instructions whose token ids are remembered: the same ones come again and again."""

T = TypeVar("T")


class Local:
    """Compresses and measures.

    Args:
        model: may be used by others meanwhile.
        store: where gists are kept.
        max_length: tokens of an instruction with its gist tokens; None: what the model can place.
        max_waiting: instructions waiting to be compressed.
        seconds: after how long to ask again where there are too many.
    """

    def __init__(
        self,
        model: GistModel,
        store: GistStore,
        *,
        max_length: int | None = None,
        max_waiting: int,
        seconds: Callable[[], float],
    ) -> None:
        self._model, self._store, self._max_length = model, store, max_length
        self._key = lru_cache(KEYS)(lambda text, k: GistKey.of(model, text, k))
        self._once = Once(max_waiting, seconds)
        self._compressing = ThreadPoolExecutor(4, thread_name_prefix="gistkit compress")
        self._measuring = ThreadPoolExecutor(1, thread_name_prefix="gistkit measure")

    async def compress(
        self, instruction: str, num_gist_tokens: int | None = None
    ) -> tuple[str, Gist]:
        """See `Engine.compress`."""
        k = self._model.check_k(num_gist_tokens)
        if len(instruction) > LONG_TEXT:
            key = await asyncio.to_thread(GistKey.of, self._model, instruction, k)
        else:
            key = self._key(instruction, k)
        tokens = len(key.tokens) + k
        if self._max_length is not None and tokens > self._max_length:
            raise PromptError(
                f"instruction and gist have {tokens} tokens, more than the {self._max_length} "
                "allowed here; shorten the instruction"
            )
        gist = self._store.held(key)
        if gist is None:
            gist = await self._run(
                key.id,
                self._compressing,
                lambda: self._store.get_or_compress(self._model, instruction, num_gist_tokens=k),
            )
        return key.id, gist

    async def measure(
        self, id: str, instruction: str, probes: Sequence[str]
    ) -> Mapping[str, object]:
        """See `Engine.measure`."""
        given = tuple(probes)

        def work() -> Mapping[str, object]:
            gist = self._store.load(id)
            found = measure_fidelity(
                self._model, instruction, gist.to(device=self._model.device), probes=given or None
            )
            self._store.update(id, with_fidelity(gist, found))
            return found.to_json()

        return await self._run(("measure", id, instruction, given), self._measuring, work)

    async def stop(self) -> None:
        """End what has not begun; returns when the rest has ended."""
        self._once.stop()
        for pool in (self._compressing, self._measuring):
            await asyncio.to_thread(pool.shutdown, cancel_futures=True)

    async def _run(self, name: object, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        """The store does the same for threads; here those who wait need no thread."""
        loop = asyncio.get_running_loop()
        return await self._once.run(name, lambda: loop.run_in_executor(pool, work))


async def aside(characters: int, work: Callable[[], T]) -> T:
    """What `work` makes of a text; long ones in a thread, since the loop has others to serve."""
    return await asyncio.to_thread(work) if characters > LONG_TEXT else work()
