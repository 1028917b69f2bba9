"""Requests to vLLM servers: token ids, placeholders and parameters of the connector.

    [<GIST>]*k [input]            {"gist": ID}          an answer from a gist
    [instruction] [<GIST>]*k      {"compress": KEY}     a new gist in the store
    [instruction and input]       nothing               an answer from the full prompt

    Job.body ──> server ── TokenChunk ──> Job.push ── StreamChunk ──> Job.chunks

Knows nothing about which server gets a job.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gistkit.gist import instruction_hash
from gistkit.model import GistModel
from gistkit.serving.engine import Prepared, Sampling, StreamChunk
from gistkit.serving.sampling import Sequence
from gistkit.serving.scheduler import Request
from gistkit.serving.vllm.client import Endpoint, TokenChunk
from gistkit.store import GistKey

STREAM_INTERVAL = 16
"""Tokens of an event where nothing is streamed: fewer events, less to read."""


@dataclass(eq=False, slots=True, kw_only=True)
class Job(Request):
    """One answer on its way through vLLM.

    Greedy answers to one prompt are equal: one job gives `copies` of them.

    Attributes:
        body: of the HTTP request.
        begin: makes an empty answer.
        index, copies: it gives the answers `index` to `index + copies - 1`.
        content: its gist or instruction, which its server should have in memory; "": neither.
        whole: the client gets the answer when it is complete, so until then it can be retried.
        seen: the client got a part, so it cannot be retried.
    """

    body: Mapping[str, Any]
    begin: Callable[["Job"], Sequence]
    index: int = 0
    copies: int = 1
    content: str = ""
    whole: bool = False
    answer: Sequence = field(init=False)
    seen: bool = False
    task: "asyncio.Task[None] | None" = None
    endpoint: Endpoint | None = None
    _buffer: list[StreamChunk] = field(default_factory=list)
    _started: bool = False

    def __post_init__(self) -> None:
        self.answer = self.begin(self)

    def restart(self) -> None:
        """Forget the answer so far, to get it from another server."""
        assert not self.seen
        self.answer = self.begin(self)
        self._buffer = []

    def push(self, received: TokenChunk) -> None:
        """Add to the answer; tokens after its end are dropped."""
        most = 1 + (self.prepared.sampling.logprobs or 0)
        for at, token in enumerate(received.tokens):
            if self.answer.done:
                break
            likeliest = received.logprobs[at][:most] if received.logprobs else ()
            chunk = self.answer.append(token, likeliest)
            if chunk is not None:
                self._buffer.append(chunk)
        if self.whole and not self.answer.done:
            if not self._started:  # tells when the first token came
                self._started = True
                self.chunks.put_nowait(StreamChunk(self.index, "", 0))
            return
        self.seen = self.seen or bool(self._buffer)
        for chunk in self._buffer:
            for copy in range(self.copies):
                self.chunks.put_nowait(replace(chunk, index=self.index + copy))
        self._buffer = []


class JobFactory:
    """Makes the jobs of one model, which servers have under `name`."""

    def __init__(self, model: GistModel, name: str) -> None:
        self.model, self._name = model, name
        self._ends = model.end_tokens

    def answers(self, prepared: Prepared, *, whole: bool) -> list[Job]:
        """One job for all greedy answers, or one for each sampled one."""
        sampling, chunks = prepared.sampling, asyncio.Queue[StreamChunk | Exception]()
        ids = [self.model.gist_id] * prepared.num_cached + prepared.ids
        greedy = sampling.temperature == 0
        return [
            Job(
                prepared=prepared,
                chunks=chunks,
                body=self._body(
                    sampling,
                    ids,
                    index=index,
                    whole=whole,
                    transfer=None if prepared.gist is None else {"gist": prepared.gist_id},
                ),
                begin=self._begin,
                index=index,
                copies=sampling.n if greedy else 1,
                content=prepared.gist_id
                or (instruction_hash(prepared.instruction) if prepared.instruction else ""),
                whole=whole,
            )
            for index in range(1 if greedy else sampling.n)
        ]

    def compression(self, key: GistKey, instruction: str) -> Job:
        ids = [*key.tokens, *[self.model.gist_id] * key.num_tokens]
        sampling = Sampling(1)
        prepared = Prepared(
            ids=ids,
            gist=None,
            gist_id="",
            instruction=instruction,
            sampling=sampling,
            client="",
            num_cached=0,
            prompt_tokens=len(ids),
            total_tokens=len(ids) + 1,
            kv_bytes=0,
        )
        transfer = {"compress": key.to_json(), "instruction_sha256": instruction_hash(instruction)}
        body = self._body(sampling, ids, index=0, whole=True, transfer=transfer)
        return Job(prepared=prepared, body=body, begin=self._begin, whole=True)

    def _body(
        self,
        sampling: Sampling,
        ids: list[int],
        *,
        index: int,
        whole: bool,
        transfer: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        """The HTTP request for one answer.

        It sets everything that changes an answer, so that nothing comes from the checkpoint's
        generation_config.json there. Stop strings are not sent: texts are made here.
        """
        seed = sampling.seed
        body: dict[str, Any] = {
            "model": self._name,
            "prompt": ids,
            "stream": True,
            "n": 1,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": None if seed is None else (seed + index) % 2**63,  # -1 would be no seed at all
            "ignore_eos": True,  # only `stop_token_ids` end an answer
            "stop_token_ids": self._ends,
            "return_token_ids": True,
        }
        if whole:
            body["stream_interval"] = STREAM_INTERVAL
        if sampling.logprobs is not None:
            body |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
        if transfer is not None:
            body["kv_transfer_params"] = transfer
        return body

    def _begin(self, job: Job) -> Sequence:
        return Sequence(job, job.index, self.model.tokenizer, self._ends)
