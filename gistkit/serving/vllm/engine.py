"""The engine on vLLM servers; see the package.

Instructions are compressed by vLLM, which puts the gists into the store that all share; or here, if
the model's weights are in this process (`compressor=transformers`).
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Literal

import httpx2

from gistkit.errors import GistFileError, OptionError, SaveError, UnavailableError
from gistkit.gist import Gist
from gistkit.model import GistModel
from gistkit.models.inputs import check_numbers
from gistkit.serving.engine import (
    Engine,
    Prepared,
    Prompt,
    Sampling,
    StreamChunk,
    check_k,
    in_thread_if_long,
)
from gistkit.serving.transformers_engine import GistJobs
from gistkit.serving.vllm.client import Endpoint, http_client
from gistkit.serving.vllm.handshake import (
    Identity,
    check_identity,
    prove_compressing,
    prove_reading,
)
from gistkit.serving.vllm.jobs import Job, JobFactory
from gistkit.serving.vllm.router import Router
from gistkit.single_flight import SingleFlight
from gistkit.store import GistKey, GistStore

SAMPLE = "Answer."


class VllmEngine(Engine):
    """An engine on vLLM servers (raises OptionError: no server, or a number below one).

    Args:
        model: the whole one, or for `compressor=vllm` a `TokenizerModel`.
        store: the servers' store; the caller closes it.
        urls, key: of the servers.
        compressor: what compresses: vLLM, or `model` in this process, which can also measure.
        max_waiting: answers in the queue, and instructions waiting to be compressed.
        max_rows: answers at once on each server.
        max_length: tokens of a prompt and its answer together; the model and the servers may allow
            less.
    """

    def __init__(
        self,
        model: GistModel,
        store: GistStore,
        urls: Sequence[str],
        *,
        name: str = "gistkit",
        key: str | None = None,
        compressor: Literal["vllm", "transformers"] = "vllm",
        max_waiting: int = 1024,
        max_rows: int = 256,
        max_length: int | None = None,
    ) -> None:
        check_numbers(max_waiting=max_waiting, max_rows=max_rows, max_length=max_length or 1)
        if not urls:
            raise OptionError("at least one `endpoint` is needed")
        super().__init__(model, name=name, max_length=max_length)
        self.store = store
        self._urls, self._key = list(dict.fromkeys(urls)), key
        self._max_waiting, self._max_rows = max_waiting, max_rows
        self._identity = Identity.of(model)
        self._jobs = JobFactory(model, self._identity.name)
        self._flights = SingleFlight(max_waiting, lambda: self._router.queue.seconds_until_room())
        self._local: GistJobs | None = None
        if compressor == "transformers":
            self._local = GistJobs(model, store, max_waiting=max_waiting, retry_after=lambda: 1.0)
        self._client: httpx2.AsyncClient | None = None
        self._router = self._new_router([])

    async def start(self) -> None:
        self._connect()
        await self._router.start()

    async def check(self) -> None:
        """Raise UnavailableError, with the reasons, unless a server can be used.

        May be called before `start`, on an event loop of its own.
        """
        self._connect()
        try:
            problems = await asyncio.gather(*map(self._router.check, self._router.endpoints))
        finally:
            await self._close()
        if all(problems):
            reasons = "; ".join(map(": ".join, zip(self._urls, problems, strict=True)))
            raise UnavailableError(f"no vLLM server can be used: {reasons}")

    async def stop(self) -> None:
        self._flights.stop()
        await self._close()
        if self._local is not None:
            await self._local.stop()

    @property
    def healthy(self) -> bool:
        return self._router.up > 0

    async def compress(
        self, instruction: str, num_gist_tokens: int | None = None
    ) -> tuple[str, Gist]:
        """As every engine; raises SaveError too: vLLM did not store the gist."""
        if self._local is not None:
            id, gist = await self._local.compress(instruction, num_gist_tokens)
            if await asyncio.to_thread(self.store.find, id) is None:
                raise SaveError("the gist could not be stored, so vLLM cannot read it; free space")
            return id, gist
        k = check_k(self.model, num_gist_tokens)
        key = await in_thread_if_long(
            len(instruction), lambda: GistKey.of(self.model, instruction, k)
        )
        gist = await self._flights.wait(
            key.id, lambda: asyncio.ensure_future(self._compress(key, instruction))
        )
        return key.id, gist

    async def measure(
        self, gist_id: str, instruction: str, probes: Sequence[str]
    ) -> Mapping[str, object]:
        """As every engine; raises OptionError where the weights are not in this process."""
        if self._local is None:
            raise OptionError(
                "this server does not have the model's weights, so it cannot measure a gist; use "
                "`gistkit check --store`, or start it by `gistkit serve --compressor transformers`"
            )
        return await self._local.measure(gist_id, instruction, probes)

    async def stream(
        self, prepared: Prepared, *, whole: bool = False
    ) -> AsyncGenerator[StreamChunk, None]:
        """As every engine; raises GistFileError too: the gist was deleted meanwhile."""
        jobs = self._jobs.answers(prepared, whole=whole)
        self._router.submit(jobs)
        try:
            async with aclosing(self._chunks(jobs)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except UnavailableError:
            if prepared.gist is not None:
                await self._check_stored(prepared.gist_id)
            raise

    def stats(self) -> Mapping[str, float]:
        router = self._router
        return {
            "running": router.running,
            "waiting": router.queue.size,
            **dict.fromkeys(("kv_bytes", "kv_limit", "steps"), 0),  # the servers' own
            "tokens": router.tokens,
            "endpoints": len(router.endpoints),
            "endpoints_up": router.up,
            "retried": router.retried,
        }

    def _connect(self) -> None:
        """New connections, for the running event loop."""
        self._client = client = http_client(self._key)
        self._router = self._new_router([Endpoint(url, client) for url in self._urls])

    def _new_router(self, endpoints: Sequence[Endpoint]) -> Router:
        return Router(
            endpoints, self._handshake, max_rows=self._max_rows, max_waiting=self._max_waiting
        )

    async def _close(self) -> None:
        await self._router.stop()
        if self._client is not None:
            await self._client.aclose()

    async def _handshake(self, endpoint: Endpoint) -> None:
        """Have a server prove what it is (raises EndpointError)."""
        info = await endpoint.info()
        check_identity(info.names, self._identity)
        if self._local is None:
            gist = await prove_compressing(endpoint, self._jobs, self.store)
        else:
            id, gist = await self._local.compress(SAMPLE)
            prepared = await self.prepare(Prompt("", "a"), gist, Sampling(1), gist_id=id)
            await prove_reading(endpoint, self._jobs, prepared)
        self.kv_bytes_per_token = gist.num_bytes // gist.num_tokens
        self.max_length = min(info.max_length, self.max_length or info.max_length)

    async def _compress(self, key: GistKey, instruction: str) -> Gist:
        known = await asyncio.to_thread(self.store.get, key)
        if known is not None:
            return known
        job = self._jobs.compression(key, instruction)
        self.check_prepared(job.prepared)
        self._router.submit([job])
        async with aclosing(self._chunks([job])) as chunks:
            async for _ in chunks:
                pass
        gist = await asyncio.to_thread(self.store.get, key)
        if gist is None:
            raise SaveError("vLLM could not store the gist; its log says why")
        return gist

    async def _chunks(self, jobs: Sequence[Job]) -> AsyncGenerator[StreamChunk, None]:
        """Chunks of one request's submitted jobs; closing it cancels the rest."""
        left = sum(job.copies for job in jobs)
        try:
            while left:
                chunk = await jobs[0].chunks.get()
                if isinstance(chunk, Exception):
                    raise chunk
                left -= chunk.finish is not None
                yield chunk
        finally:
            for job in jobs:
                self._router.cancel(job)

    async def _check_stored(self, gist_id: str) -> None:
        """Raise GistFileError if a gist was deleted: then it was not the server's fault."""
        if await asyncio.to_thread(self.store.find, gist_id) is None:
            raise GistFileError(f"the gist {gist_id} is no longer in the store")
