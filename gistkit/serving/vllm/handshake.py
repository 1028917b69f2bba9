"""Servers show that they are ours by doing what only such a one can do.

With the right weights, our connector and our store a server can compress an instruction that nobody
has seen before, and the gist is found in the store. Where vLLM does not compress (docs/vllm.md), it
answers from a gist, and refuses one that does not exist: without the connector it would answer all
the same.
"""

import asyncio
import secrets
from contextlib import suppress
from dataclasses import replace

from gistkit.errors import PromptError, SaveError
from gistkit.gist import Gist
from gistkit.model import GistModel
from gistkit.serving.engine import Prompt, Sampling
from gistkit.serving.vllm.client import Endpoint
from gistkit.serving.vllm.identity import NAMELESS, Identity
from gistkit.serving.vllm.job import Job
from gistkit.serving.vllm.jobs import Asking
from gistkit.serving.vllm.wire import BrokenError, EndpointError, StrangerError
from gistkit.store import GistKey, GistStore

NOBODY = "0" * 64  # no gist's id


def check_same(theirs: Identity | None, ours: Identity) -> None:
    """Raise StrangerError unless a server runs our model."""
    if theirs is None:
        raise StrangerError(NAMELESS)
    if theirs.weights != ours.weights:
        raise StrangerError("it runs other weights, or the same in another --precision")
    if theirs.language != ours.language:
        raise StrangerError(
            "it runs another model than MODEL here: tokenizer, template, gist tokens, ends of "
            "answers or shapes differ; give the model that it was started with"
        )


async def shows_compressing(
    endpoint: Endpoint, asking: Asking, model: GistModel, store: GistStore
) -> Gist:
    """The gist of an instruction that a server was asked to compress; not in the store any more.

    Raises:
        EndpointError: it did not.
    """
    instruction = f"Are you there? {secrets.token_hex(8)}"
    key = GistKey.of(model, instruction)
    try:
        await _done(endpoint, asking.to_compress(key, instruction))
        gist = await asyncio.to_thread(store.get, key)
    finally:
        with suppress(SaveError):
            await asyncio.to_thread(store.remove, key.id)
    if gist is None:
        raise StrangerError(
            f"it kept no gist in {store.place}: it has another store, no connector of ours, or "
            "cannot compress this model (--compressor transformers); see its log"
        )
    return gist


async def shows_reading(endpoint: Endpoint, asking: Asking, id: str, gist: Gist) -> None:
    """Have a server answer from this stored gist, and from none (raises EndpointError)."""
    prepared = await asking.prepare(Prompt("", "a"), gist, Sampling(1), gist_id=id)
    try:
        nothing = replace(prepared, gist_id=NOBODY)
        await _done(endpoint, *asking.jobs(nothing, "", whole=True))
    except BrokenError:
        raise
    except (EndpointError, PromptError):
        await _done(endpoint, *asking.jobs(prepared, "", whole=True))
        return
    raise StrangerError("it answered from a gist that does not exist: it has no connector of ours")


async def _done(endpoint: Endpoint, *jobs: Job) -> None:
    for job in jobs:
        async for _ in endpoint.ask(job.body):
            pass
