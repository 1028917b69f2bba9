"""The engine behind the HTTP front that has vLLM servers answer; see the package.

Instructions are compressed by vLLM, which keeps the gists in the store that all share; or here,
where the model's weights are in this process (`Local`).
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import httpx2

from gisting.errors import (
    GistFileError,
    OptionError,
    PromptError,
    SaveError,
    UnavailableError,
)
from gisting.fidelity.reading import end_tokens
from gisting.gist import Gist, instruction_hash
from gisting.integrations.server import weights_name
from gisting.model import GistModel
from gisting.models.inputs import check_numbers
from gisting.prompts import Input
from gisting.serving.engine import Delta, Engine, Prompt, Sampling, Size
from gisting.serving.local import Local, aside
from gisting.serving.once import Once
from gisting.serving.requests import Answer, Request
from gisting.serving.vllm.balancer import Balancer
from gisting.serving.vllm.endpoint import UNTRIED, Endpoint, Facts, client_of
from gisting.serving.vllm.job import Job
from gisting.serving.vllm.watch import Watch, new_instruction, refuses
from gisting.serving.vllm.wire import StrangerError, body_of
from gisting.store import GistKey, GistStore

MAX_WAITING = 1024
MAX_ROWS = 256
NOBODY = "0" * 64  # no gist's id
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
        name: str = "gisting",
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
        limits = [n for n in (max_length, model.adapter.max_positions) if n is not None]
        self.max_length = min(limits, default=None)
        self._weights = weights_name(model.fingerprint)
        self._ends = end_tokens(model)
        self._urls, self._key = list(dict.fromkeys(urls)), key
        self._max_waiting, self._max_rows = max_waiting, max_rows
        self._ids = lru_cache(max_waiting)(self._encode)  # a front asks for the size first
        self._kv_bytes_per_token = 0
        self._once = Once(max_waiting, lambda: self._balancer.seconds_until_room())
        self._local: Local | None = None
        if local:
            self._local = Local(model, store, max_waiting=max_waiting, seconds=lambda: 1.0)
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
    def works(self) -> bool:
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
            key = await aside(len(instruction), lambda: GistKey.of(self.model, instruction, k))
            gist = await self._once.run(
                key.id, lambda: asyncio.ensure_future(self._made(key, instruction))
            )
            id = key.id
        self._kv_bytes_per_token = gist.num_bytes // gist.num_tokens
        return id, gist

    async def measure(
        self, id: str, instruction: str, probes: Sequence[str]
    ) -> Mapping[str, object]:
        """See `Engine.measure` (raises OptionError where the weights are not here)."""
        if self._local is None:
            raise OptionError(
                "this server does not have the model's weights, so it cannot measure a gist; use "
                "`gisting check --store`, or start it with --compressor transformers"
            )
        return await self._local.measure(id, instruction, probes)

    def size(self, prompt: Prompt, gist: Gist | None, sampling: Sampling) -> Size:
        """See `Engine.size`."""
        request = self._request(prompt, gist, sampling, "")
        each = self._kv_bytes_per_token if gist is None else gist.num_bytes // gist.num_tokens
        return Size(
            tokens=request.kept + len(request.ids),
            cached=request.kept,
            kv_bytes=request.columns * each,
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
            prompt.characters, lambda: self._request(prompt, gist, sampling, client)
        )
        errand = None if gist is None else {"gist": id}
        what = (
            id if gist is not None else prompt.instruction and instruction_hash(prompt.instruction)
        )
        jobs = self._jobs(request, errand, what, whole=whole)
        self._balancer.submit(jobs)
        try:
            left = sampling.n
            while left:
                said = await request.out.get()
                if isinstance(said, UnavailableError) and errand is not None:
                    await self._check_kept(id)
                if isinstance(said, Exception):
                    raise said
                left -= said.finish is not None
                yield said
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
        """Have a server show that it is what it should be; see `watch`."""
        facts = await endpoint.facts()
        if weights_name(facts.weights or "") != self._weights:
            raise StrangerError(
                "it runs other weights, or was not started with `gisting serve --engine vllm "
                "--print-command`"
            )
        if self._local is None:
            await self._greet_compressing(endpoint)
        else:
            id, gist = await self._local.compress(SAMPLE)
            await refuses(
                lambda: self._ask(endpoint, NOBODY, gist),
                "it answered from a gist that does not exist: it has no connector of ours",
            )
            await self._ask(endpoint, id, gist)
            self._kv_bytes_per_token = gist.num_bytes // gist.num_tokens
        limit = self.max_length
        self.max_length = facts.max_length if limit is None else min(limit, facts.max_length)
        return facts

    async def _greet_compressing(self, endpoint: Endpoint) -> None:
        key = GistKey.of(self.model, instruction := new_instruction())
        try:
            async for _ in endpoint.ask(self._job_to_compress(key, instruction).body):
                pass
            gist = await asyncio.to_thread(self.store.get, key)
        finally:
            with suppress(SaveError):
                await asyncio.to_thread(self.store.remove, key.id)
        if gist is None:
            raise StrangerError(
                f"it kept no gist in {self.store.place}: it has another store, no connector of "
                "ours, or cannot compress this model (--compressor transformers); see its log"
            )
        self._kv_bytes_per_token = gist.num_bytes // gist.num_tokens

    async def _ask(self, endpoint: Endpoint, id: str, gist: Gist) -> None:
        request = self._request(Prompt("", "a"), gist, Sampling(1), "")
        (job,) = self._jobs(request, {"gist": id}, "", whole=True)
        async for _ in endpoint.ask(job.body):
            pass

    async def _made(self, key: GistKey, instruction: str) -> Gist:
        """From the store, or made by vLLM and put there."""
        known = await asyncio.to_thread(self.store.get, key)
        if known is not None:
            return known
        job = self._job_to_compress(key, instruction)
        self._balancer.submit([job])
        try:
            finished = False
            while not finished:
                said = await job.out.get()
                if isinstance(said, Exception):
                    raise said
                finished = said.finish is not None
        finally:
            self._balancer.cancel(job)
        gist = await asyncio.to_thread(self.store.get, key)
        if gist is None:
            raise SaveError("vLLM could not keep the gist; see its log, and free space")
        return gist

    def _job_to_compress(self, key: GistKey, instruction: str) -> Job:
        k = key.num_tokens
        ids = [*key.tokens, *[self.model.gist_id] * k]
        errand = {"compress": key.to_json(), "instruction_sha256": instruction_hash(instruction)}
        request = Request(ids, None, Sampling(1), "")
        self._check_length(request)
        (job,) = self._jobs(request, errand, "", whole=True)
        return job

    def _jobs(
        self, request: Request, errand: Mapping[str, Any] | None, what: str, *, whole: bool
    ) -> list[Job]:
        """What servers are asked: once for all greedy answers, once for each drawn one."""
        how = request.sampling
        greedy = how.temperature == 0
        ids = [self.model.gist_id] * request.kept + request.ids
        return [
            Job(
                ids=request.ids,
                gist=request.gist,
                sampling=how,
                client=request.client,
                out=request.out,
                body=body_of(
                    self._weights,
                    ids,
                    how,
                    # -1 would be none at all
                    seed=None if how.seed is None else (how.seed + index) % 2**63,
                    ends=self._ends,
                    whole=whole,
                    errand=errand,
                ),
                make=lambda job: self._begin(job),
                index=index,
                copies=how.n if greedy else 1,
                what=what,
                whole=whole,
            )
            for index in range(1 if greedy else how.n)
        ]

    def _begin(self, job: Job) -> Answer:
        decode = self.model.tokenizer.decode
        return Answer(
            job,
            job.index,
            decode=lambda ids: str(decode(ids, skip_special_tokens=True)),
            name=lambda ids: str(decode(ids)),
            ends=frozenset(self._ends),
        )

    def _request(
        self, prompt: Prompt, gist: Gist | None, sampling: Sampling, client: str
    ) -> Request:
        check_numbers(max_tokens=sampling.max_tokens, n=sampling.n)
        if sampling.temperature < 0 or not 0 < sampling.top_p <= 1:
            raise OptionError("temperature must be 0 or more, top_p in (0, 1]")
        if gist is not None:
            gist.check(self.model.fingerprint, self.model.config.template, 1)
        turns = prompt.turns if isinstance(prompt.turns, str) else tuple(prompt.turns)
        ids = self._ids("" if gist is not None else prompt.instruction, turns)
        request = Request(ids, gist, sampling, client)
        self._check_length(request)
        return request

    def _check_length(self, request: Request) -> None:
        if self.max_length is not None and request.columns > self.max_length:
            raise PromptError(
                f"{request.columns} tokens (prompt and answer) are more than the "
                f"{self.max_length} allowed here; shorten the prompt or max_tokens"
            )

    async def _check_kept(self, id: str) -> None:
        """Raise GistFileError where a gist is gone: then no server was at fault."""
        if await asyncio.to_thread(self.store.find, id) is None:
            raise GistFileError(f"the gist {id} is no longer in the store")

    def _encode(self, instruction: str, turns: Input) -> list[int]:
        encoder = self.model.encoder
        if not instruction:
            return encoder.input(turns)
        return encoder.prompt(instruction, turns, self.model.config.default_k)
