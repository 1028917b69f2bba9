"""The engine behind the HTTP front that has vLLM servers answer; see the package.

Instructions are compressed by vLLM, which keeps the gists in the store that all share; or here,
where the model's weights are in this process (`GistJobs`).
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence

import httpx2

from gistkit.errors import (
    GistFileError,
    OptionError,
    SaveError,
    UnavailableError,
)
from gistkit.gist import Gist, instruction_hash
from gistkit.model import GistModel
from gistkit.models.inputs import check_numbers
from gistkit.serving.engine import (
    Engine,
    Prepared,
    Prompt,
    Sampling,
    StreamChunk,
    in_thread_if_long,
)
from gistkit.serving.transformers_engine import GistJobs
from gistkit.serving.vllm.client import UNTRIED, Endpoint, Facts, client_of
from gistkit.serving.vllm.handshake import check_same, shows_compressing, shows_reading
from gistkit.serving.vllm.jobs import Asking
from gistkit.serving.vllm.router import Balancer
from gistkit.serving.vllm.watch import Watch
from gistkit.single_flight import SingleFlight
from gistkit.store import GistKey, GistStore

MAX_WAITING = 1024
MAX_ROWS = 256
SAMPLE = "Answer."


class Vllm(Engine):
    """An engine on vLLM servers.

    Args:
        model: a `Hollow` one, or with `local` the whole one.
        store: the servers' store, where gists are kept; the caller closes it.
        urls: of the servers.
        name: the model's id as clients know it.
        key: the servers' API key.
        local: compress and measure here, with the weights of `model`.
        max_waiting: answers in the queue, and instructions waiting to be compressed.
        max_rows: answers at once on each server.
        max_length: tokens of a prompt and its answer together; the model and the servers may allow
            less.

    Raises:
        OptionError: no server, or a number below one.
    """

    def __init__(
        self,
        model: GistModel,
        store: GistStore,
        urls: Sequence[str],
        *,
        name: str = "gistkit",
        key: str | None = None,
        local: bool = False,
        max_waiting: int = MAX_WAITING,
        max_rows: int = MAX_ROWS,
        max_length: int | None = None,
    ) -> None:
        check_numbers(max_waiting=max_waiting, max_rows=max_rows, max_length=max_length or 1)
        if not urls:
            raise OptionError("at least one --endpoint is needed")
        self.name = name
        self.model, self.store = model, store
        self.trained = model.config.num_gist_tokens or (model.config.default_k,)
        self._urls, self._key = list(dict.fromkeys(urls)), key
        self._max_waiting, self._max_rows = max_waiting, max_rows
        self._asking = Asking(model, max_length=max_length)
        self.max_length = self._asking.max_length
        self._once = SingleFlight(max_waiting, lambda: self._balancer.seconds_until_room())
        self._local: GistJobs | None = None
        if local:
            self._local = GistJobs(model, store, max_waiting=max_waiting, retry_after=lambda: 1.0)
        self._client: httpx2.AsyncClient | None = None
        self._balancer = Balancer([], max_rows=max_rows, max_waiting=max_waiting)
        self._watching: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """See `Engine.start`; returns when each server was tried once."""
        watch = self._connect()
        endpoints = self._balancer.endpoints
        self._watching = [asyncio.create_task(watch.run(one)) for one in endpoints]
        while any(one.state == "gone" and one.why == UNTRIED for one in endpoints):
            await asyncio.sleep(0.02)

    async def check(self) -> None:
        """Raise UnavailableError, with the reasons, unless a server is what it should be.

        For who wants to know before `start`; on an event loop of its own.
        """
        watch = self._connect()
        try:
            found = await asyncio.gather(
                *(watch.greet(one) for one in self._balancer.endpoints), return_exceptions=True
            )
        finally:
            await self._close()
        if all(isinstance(one, BaseException) for one in found):
            reasons = "; ".join(
                f"{url}: {one or type(one).__name__}"
                for url, one in zip(self._urls, found, strict=True)
            )
            raise UnavailableError(f"no vLLM server can be used: {reasons}")

    async def stop(self) -> None:
        """See `Engine.stop`."""
        self._once.stop()
        await self._close()
        if self._local is not None:
            await self._local.stop()

    @property
    def healthy(self) -> bool:
        """Whether a server is there."""
        return self._balancer.up > 0

    async def compress(
        self, instruction: str, num_gist_tokens: int | None = None
    ) -> tuple[str, Gist]:
        """See `Engine.compress` (raises SaveError where vLLM did not keep the gist, too)."""
        if self._local is not None:
            id, gist = await self._local.compress(instruction, num_gist_tokens)
            if await asyncio.to_thread(self.store.find, id) is None:
                raise SaveError("the gist could not be kept, so vLLM cannot read it; free space")
        else:
            k = self.model.check_k(num_gist_tokens)
            key = await in_thread_if_long(
                len(instruction), lambda: GistKey.of(self.model, instruction, k)
            )
            gist = await self._once.wait(
                key.id, lambda: asyncio.ensure_future(self._made(key, instruction))
            )
            id = key.id
        self._asking.kv_bytes_per_token = gist.num_bytes // gist.num_tokens
        return id, gist

    async def measure(
        self, gist_id: str, instruction: str, probes: Sequence[str]
    ) -> Mapping[str, object]:
        """See `Engine.measure` (raises OptionError where the weights are not here)."""
        if self._local is None:
            raise OptionError(
                "this server does not have the model's weights, so it cannot measure a gist; use "
                "`gistkit check --store`, or start it with --compressor transformers"
            )
        return await self._local.measure(gist_id, instruction, probes)

    async def prepare(
        self,
        prompt: Prompt,
        gist: Gist | None,
        sampling: Sampling,
        *,
        client: str = "",
        gist_id: str = "",
        fit: bool = False,
    ) -> Prepared:
        """See `Engine.prepare`."""
        return await self._asking.prepare(
            prompt, gist, sampling, client=client, gist_id=gist_id, fit=fit
        )

    async def stream(
        self, prepared: Prepared, *, whole: bool = False
    ) -> AsyncGenerator[StreamChunk, None]:
        """See `Engine.stream`."""
        what = prepared.gist_id
        if prepared.instruction:
            what = instruction_hash(prepared.instruction)
        jobs = self._asking.jobs(prepared, what, whole=whole)
        self._balancer.submit(jobs)
        try:
            left = prepared.sampling.n
            while left:
                chunk = await jobs[0].chunks.get()
                if isinstance(chunk, UnavailableError) and prepared.gist is not None:
                    await self._check_kept(prepared.gist_id)
                if isinstance(chunk, Exception):
                    raise chunk
                left -= chunk.finish is not None
                yield chunk
        finally:
            for job in jobs:
                self._balancer.cancel(job)

    def stats(self) -> Mapping[str, float]:
        """See `Engine.stats`; `kv_bytes` of `kv_limit` are the servers' own, so 0 here."""
        balancer = self._balancer
        return {
            "running": balancer.running,
            "waiting": balancer.waiting,
            "kv_bytes": 0,
            "kv_limit": 0,
            "steps": 0,
            "tokens": balancer.tokens,
            "endpoints": len(balancer.endpoints),
            "endpoints_up": balancer.up,
            "retried": balancer.retried,
        }

    def _connect(self) -> Watch:
        self._client = client_of(self._key)
        endpoints = [Endpoint(url, self._client) for url in self._urls]
        self._balancer = Balancer(endpoints, max_rows=self._max_rows, max_waiting=self._max_waiting)
        return Watch(self._greet, self._balancer.changed)

    async def _close(self) -> None:
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await self._balancer.stop()
        if self._client is not None:
            await self._client.aclose()

    async def _greet(self, endpoint: Endpoint) -> Facts:
        """Have a server show that it is what it should be."""
        facts = await endpoint.facts()
        check_same(facts.identity, self._asking.identity)
        if self._local is None:
            gist = await shows_compressing(endpoint, self._asking, self.model, self.store)
        else:
            id, gist = await self._local.compress(SAMPLE)
            await shows_reading(endpoint, self._asking, id, gist)
        self._asking.kv_bytes_per_token = gist.num_bytes // gist.num_tokens
        length = min(facts.max_length, self.max_length or facts.max_length)
        self.max_length = self._asking.max_length = length
        return facts

    async def _made(self, key: GistKey, instruction: str) -> Gist:
        """From the store, or made by vLLM and put there."""
        known = await asyncio.to_thread(self.store.get, key)
        if known is not None:
            return known
        job = self._asking.to_compress(key, instruction)
        self._balancer.submit([job])
        try:
            finished = False
            while not finished:
                said = await job.chunks.get()
                if isinstance(said, Exception):
                    raise said
                finished = said.finish is not None
        finally:
            self._balancer.cancel(job)
        gist = await asyncio.to_thread(self.store.get, key)
        if gist is None:
            raise SaveError("vLLM could not keep the gist; its log says why")
        return gist

    async def _check_kept(self, id: str) -> None:
        """Raise GistFileError where a gist is gone: then no server was at fault."""
        if await asyncio.to_thread(self.store.find, id) is None:
            raise GistFileError(f"the gist {id} is no longer in the store")
