"""Which model servers run, and proof that they serve this gateway's model.

A server has several model names; one is the model's identity, which requests use. So an answer
never comes from other weights, nor from other tokens for the same text.

Only a server with the right weights, gistkit's connector and the same store can compress an
instruction that is new, so that its gist is in the store. Where vLLM does not compress
(docs/vllm.md), it must answer from a gist and refuse one that does not exist: without the connector
it would answer from both.
"""

import asyncio
import hashlib
import json
import logging
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self

from gistkit.errors import OptionError, PromptError, SaveError, UnavailableError
from gistkit.gist import Gist
from gistkit.model import GistModel
from gistkit.serving.engine import Prepared
from gistkit.serving.vllm.client import (
    BrokenError,
    Endpoint,
    EndpointError,
    WrongServerError,
    http_client,
)
from gistkit.serving.vllm.jobs import Job, JobFactory
from gistkit.store import GistKey, GistStore
from gistkit.store.entry import tokenizer_fingerprint

log = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds for the first server to answer
RETRY = 0.5  # seconds
UNKNOWN_ID = "0" * 64  # the id of no gist
NAMELESS = (
    "it does not say what it runs; start it with the command that `gistkit serve --engine vllm "
    "--print-command` prints"
)

_NAME = re.compile(r"gistkit-([0-9a-f]{64})-([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Identity:
    """Which model a server runs.

    Attributes:
        weights: fingerprint of the weights; a gateway without weights takes it from its servers.
        language: SHA-256 of what a gateway needs its own copy of: tokenizer, template, gist tokens,
            ends of answers, names and shapes of the weights.
    """

    weights: str
    language: str

    @classmethod
    def of(cls, model: GistModel) -> Self:
        facts = {
            "tokenizer": tokenizer_fingerprint(model.tokenizer),
            "chat_template": model.tokenizer.chat_template,
            "template": model.config.template,
            "num_gist_tokens": model.config.num_gist_tokens,
            "gist_id": model.gist_id,
            "ends": sorted(model.end_tokens),
            "shapes": sorted(
                (name, list(t.shape)) for name, t in model.hf_model.named_parameters()
            ),
        }
        text = json.dumps(facts, sort_keys=True)
        return cls(model.fingerprint, hashlib.sha256(text.encode()).hexdigest())

    @classmethod
    def among(cls, names: Sequence[str]) -> Self | None:
        found = next((match for name in names if (match := _NAME.fullmatch(name))), None)
        return None if found is None else cls(*found.groups())

    @property
    def name(self) -> str:
        """The name to serve under, and to use in requests."""
        return f"gistkit-{self.weights}-{self.language}"


async def discover(urls: Sequence[str], key: str | None, *, patience: float = PATIENCE) -> Identity:
    """The model that servers run. Those that do not answer are left out, as long as one does.

    Raises:
        UnavailableError: none answers in time, or none says what it runs.
        OptionError: they run different models.
    """
    client = http_client(key)

    async def identity(url: str) -> Identity | Exception:
        try:
            info = await Endpoint(url, client).info()
        except (EndpointError, TimeoutError) as error:
            return error
        return Identity.among(info.names) or EndpointError(NAMELESS)

    waiting_since = asyncio.get_running_loop().time()
    logged = False
    try:
        while True:
            answers = [await identity(url) for url in urls]
            found = {answer for answer in answers if isinstance(answer, Identity)}
            reasons = "; ".join(
                f"{url}: {str(answer) or 'no answer in time'}"
                for url, answer in zip(urls, answers, strict=True)
            )
            starting = any(isinstance(answer, BrokenError | TimeoutError) for answer in answers)
            waited = asyncio.get_running_loop().time() - waiting_since
            if found or not starting or waited > patience:
                break
            if not logged:
                log.info("waiting for a vLLM server", extra={"facts": {"why": reasons}})
                logged = True
            await asyncio.sleep(RETRY)
    finally:
        await client.aclose()
    if not found:
        raise UnavailableError(f"no vLLM server can be used: {reasons}")
    if len(found) > 1:
        raise OptionError("the endpoints run different models; one gateway serves one model")
    return found.pop()


def check_identity(names: Sequence[str], expected: Identity) -> None:
    """Raise WrongServerError unless a server with these model names runs the expected model."""
    found = Identity.among(names)
    if found is None:
        raise WrongServerError(NAMELESS)
    if found.weights != expected.weights:
        raise WrongServerError("it runs other weights, or the same in another `precision`")
    if found.language != expected.language:
        raise WrongServerError(
            "it runs another model than the one given here: tokenizer, template, gist tokens, ends "
            "of answers or shapes differ; give the model that it was started with"
        )


async def prove_compressing(endpoint: Endpoint, jobs: JobFactory, store: GistStore) -> Gist:
    """Have a server compress a new instruction, then delete its gist (raises EndpointError)."""
    instruction = f"Are you there? {secrets.token_hex(8)}"
    key = GistKey.of(jobs.model, instruction)
    try:
        await _run(endpoint, jobs.compression(key, instruction))
        gist = await asyncio.to_thread(store.get, key)
    finally:
        with suppress(SaveError):
            await asyncio.to_thread(store.remove, key.id)
    if gist is None:
        raise WrongServerError(
            f"it stored no gist in {store.place}: it has another store, lacks the connector, or "
            "cannot compress this model (`compressor=transformers` may); see its log"
        )
    return gist


async def prove_reading(endpoint: Endpoint, jobs: JobFactory, prepared: Prepared) -> None:
    """Have a server answer from a stored gist, and refuse another (raises EndpointError)."""
    unknown = replace(prepared, gist_id=UNKNOWN_ID)
    try:
        await _run(endpoint, *jobs.answers(unknown, whole=True))
    except BrokenError:
        raise
    except (EndpointError, PromptError):
        await _run(endpoint, *jobs.answers(prepared, whole=True))
        return
    raise WrongServerError("it answered from a gist that does not exist: it lacks the connector")


async def _run(endpoint: Endpoint, *jobs: Job) -> None:
    for job in jobs:
        async for _ in endpoint.complete(job.body):
            pass
