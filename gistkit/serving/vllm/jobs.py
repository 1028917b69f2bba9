"""Prompts as what vLLM servers are asked: token ids, placeholders, errands of the connector.

    [<GIST>]*k [input]            errand {"gist": ID}          an answer from a gist
    [instruction] [<GIST>]*k      errand {"compress": KEY}     a new gist in the store
    [instruction and input]       no errand                    an answer from the full prompt

Knows nothing of servers.
"""

from collections.abc import Mapping
from typing import Any

from gistkit.gist import instruction_hash
from gistkit.model import GistModel
from gistkit.serving.engine import Sampling
from gistkit.serving.prepare import Reader
from gistkit.serving.requests import Answer, Request
from gistkit.serving.vllm.identity import Identity
from gistkit.serving.vllm.job import Job
from gistkit.serving.vllm.wire import body_of
from gistkit.store import GistKey


class Asking(Reader):
    """One model's way of asking.

    Args:
        model: a `Hollow` one will do.
        max_length, prompts: as `Reader`.

    Attributes:
        max_length: servers may allow less.
        identity: under its name servers are asked.
    """

    def __init__(self, model: GistModel, *, max_length: int | None, prompts: int) -> None:
        super().__init__(model, max_length=max_length, prompts=prompts)
        self.identity = Identity.of(model)
        self._ends = model.end_tokens

    def jobs(self, request: Request, id: str, what: str, *, whole: bool) -> list[Job]:
        """What servers are asked: once for all greedy answers, once for each drawn one.

        Args:
            id: of the request's gist, where it has one.
            what: gist or instruction that a server would better have at hand.
        """
        errand = None if request.gist is None else {"gist": id}
        greedy = request.sampling.temperature == 0
        return [
            self._job(
                request,
                [self._model.gist_id] * request.kept + request.ids,
                errand,
                index=index,
                copies=request.sampling.n if greedy else 1,
                what=what,
                whole=whole,
            )
            for index in range(1 if greedy else request.sampling.n)
        ]

    def to_compress(self, key: GistKey, instruction: str) -> Job:
        """Have a gist made and kept in the store (raises PromptError: it is too long)."""
        ids = [*key.tokens, *[self._model.gist_id] * key.num_tokens]
        request = Request(ids, None, Sampling(1), "")
        self.check_length(request.columns)
        errand = {"compress": key.to_json(), "instruction_sha256": instruction_hash(instruction)}
        return self._job(request, ids, errand, whole=True)

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
        seed = request.sampling.seed
        body = body_of(
            self.identity.name,
            ids,
            request.sampling,
            seed=None if seed is None else (seed + index) % 2**63,  # -1 would be none at all
            ends=self._ends,
            whole=whole,
            errand=errand,
        )
        return Job(
            ids=request.ids,
            gist=request.gist,
            sampling=request.sampling,
            client=request.client,
            out=request.out,
            body=body,
            make=self._begin,
            index=index,
            copies=copies,
            what=what,
            whole=whole,
        )

    def _begin(self, job: Job) -> Answer:
        decode = self._model.tokenizer.decode
        return Answer(
            job,
            job.index,
            decode=lambda ids: str(decode(ids, skip_special_tokens=True)),
            name=lambda ids: str(decode(ids)),
            ends=frozenset(self._ends),
        )
