"""Prompts as what vLLM servers are asked: token ids, placeholders, errands of the connector.

    [<GIST>]*k [input]            errand {"gist": ID}          an answer from a gist
    [instruction] [<GIST>]*k      errand {"compress": KEY}     a new gist in the store
    [instruction and input]       no errand                    an answer from the full prompt

Knows nothing of servers.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from gisting.errors import OptionError, PromptError
from gisting.fidelity.reading import end_tokens
from gisting.gist import Gist, instruction_hash
from gisting.integrations.server import weights_name
from gisting.model import GistModel
from gisting.models.inputs import check_numbers
from gisting.prompts import Input
from gisting.serving.engine import Prompt, Sampling
from gisting.serving.requests import Answer, Request
from gisting.serving.vllm.job import Job
from gisting.serving.vllm.wire import body_of
from gisting.store import GistKey


class Asking:
    """One model's way of asking.

    Args:
        model: its tokenizer, templates and fingerprint; a `Hollow` one will do.
        max_length: tokens of a prompt and its answer together; None: no limit but the model's.
        prompts: so many prompts' ids are remembered: a front asks for the size first.

    Attributes:
        max_length: may be lowered, when servers allow less.
        weights: the name that servers are asked by.
    """

    def __init__(self, model: GistModel, *, max_length: int | None, prompts: int) -> None:
        limits = [n for n in (max_length, model.adapter.max_positions) if n is not None]
        self.max_length = min(limits, default=None)
        self.weights = weights_name(model.fingerprint)
        self._model, self._ends = model, end_tokens(model)
        self._ids = lru_cache(prompts)(self._encode)

    def request(
        self, prompt: Prompt, gist: Gist | None, sampling: Sampling, client: str = ""
    ) -> Request:
        """A request, checked.

        Raises:
            PromptError: it cannot be a prompt, or is too long.
            OptionError: a sampling that means nothing.
            GistMismatchError: another model's gist.
        """
        check_numbers(max_tokens=sampling.max_tokens, n=sampling.n)
        if sampling.temperature < 0 or not 0 < sampling.top_p <= 1:
            raise OptionError("temperature must be 0 or more, top_p in (0, 1]")
        if gist is not None:
            gist.check(self._model.fingerprint, self._model.config.template, 1)
        turns = prompt.turns if isinstance(prompt.turns, str) else tuple(prompt.turns)
        ids = self._ids("" if gist is not None else prompt.instruction, turns)
        request = Request(ids, gist, sampling, client)
        self._check_length(request.columns)
        return request

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
        self._check_length(request.columns)
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
            self.weights,
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

    def _encode(self, instruction: str, turns: Input) -> list[int]:
        encoder = self._model.encoder
        if not instruction:
            ids = encoder.input(turns)
        else:
            ids = encoder.prompt(instruction, turns, self._model.config.default_k)
        self._check_length(len(ids))  # what is refused here is not remembered either
        return ids

    def _check_length(self, tokens: int) -> None:
        if self.max_length is not None and tokens > self.max_length:
            raise PromptError(
                f"{tokens} tokens (prompt and answer) are more than the {self.max_length} allowed "
                "here; shorten the prompt or max_tokens"
            )
