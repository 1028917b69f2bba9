"""Prompts as what vLLM servers are asked: token ids, placeholders, errands of the connector.

    [<GIST>]*k [input]            errand {"gist": ID}          an answer from a gist
    [instruction] [<GIST>]*k      errand {"compress": KEY}     a new gist in the store
    [instruction and input]       no errand                    an answer from the full prompt

Knows nothing of servers.
"""

from collections.abc import Mapping
from typing import Any

from gistkit.fidelity.reading import end_tokens
from gistkit.gist import instruction_hash
from gistkit.model import GistModel
from gistkit.serving.engine import Prepared, Preparer, Sampling
from gistkit.serving.sampling import Sequence
from gistkit.serving.scheduler import Request
from gistkit.serving.vllm.identity import Identity
from gistkit.serving.vllm.job import Job
from gistkit.serving.vllm.wire import body_of
from gistkit.store import GistKey


class Asking(Preparer):
    """One model's way of asking.

    Args:
        model: a `Hollow` one will do.
        max_length: as `Preparer`.

    Attributes:
        max_length: servers may allow less.
        identity: under its name servers are asked.
    """

    def __init__(self, model: GistModel, *, max_length: int | None) -> None:
        super().__init__(model, max_length=max_length)
        self.identity = Identity.of(model)
        self._ends = end_tokens(model)

    def jobs(self, prepared: Prepared, what: str, *, whole: bool) -> list[Job]:
        """What servers are asked: once for all greedy answers, once for each drawn one.

        Args:
            what: gist or instruction that a server would better have at hand.
        """
        errand = None if prepared.gist is None else {"gist": prepared.gist_id}
        sampling, request = prepared.sampling, Request(prepared)
        greedy = sampling.temperature == 0
        return [
            self._job(
                request,
                [self._model.gist_id] * prepared.num_cached + prepared.ids,
                errand,
                index=index,
                copies=sampling.n if greedy else 1,
                what=what,
                whole=whole,
            )
            for index in range(1 if greedy else sampling.n)
        ]

    def to_compress(self, key: GistKey, instruction: str) -> Job:
        """Have a gist made and kept in the store (raises PromptError: it is too long)."""
        ids = [*key.tokens, *[self._model.gist_id] * key.num_tokens]
        self.check_length(len(ids) + 1)
        prepared = Prepared(
            ids=ids,
            gist=None,
            gist_id="",
            instruction=instruction,
            sampling=Sampling(1),
            client="",
            num_cached=0,
            prompt_tokens=len(ids),
            total_tokens=len(ids) + 1,
            kv_bytes=0,
        )
        errand = {"compress": key.to_json(), "instruction_sha256": instruction_hash(instruction)}
        return self._job(Request(prepared), ids, errand, whole=True)

    def _job(
        self,
        request: Request,
        ids: list[int],
        errand: Mapping[str, Any] | None,
        *,
        whole: bool,
        index: int = 0,
        copies: int = 1,
        what: str = "",
    ) -> Job:
        sampling = request.prepared.sampling
        seed = sampling.seed
        body = body_of(
            self.identity.name,
            ids,
            sampling,
            seed=None if seed is None else (seed + index) % 2**63,  # -1 would be none at all
            ends=self._ends,
            whole=whole,
            errand=errand,
        )
        return Job(
            prepared=request.prepared,
            chunks=request.chunks,
            body=body,
            make=self._begin,
            index=index,
            copies=copies,
            what=what,
            whole=whole,
        )

    def _begin(self, job: Job) -> Sequence:
        return Sequence(job, job.index, self._model.tokenizer, frozenset(self._ends))
