"""What is sent to a vLLM server, and what comes back: bodies, events, refusals.

Token ids go there and come back, so that a text is read and written by one tokenizer only. Knows
nothing of who asks which server.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gistkit.errors import PromptError
from gistkit.serving.engine import Sampling

AT_ONCE = 16
"""Tokens of an event where nobody looks at pieces: fewer events, less to read."""

LONGEST = 300
"""Characters of another server's message."""


class EndpointError(Exception):
    """A server did not do what it was asked; another one may."""


class BrokenError(EndpointError):
    """The connection broke: the server is gone, or about to go."""


class StrangerError(EndpointError):
    """It is not the server that it should be: other weights, no connector, another store."""


@dataclass(frozen=True, slots=True)
class Said:
    """A part of an answer.

    Attributes:
        tokens: new ids.
        likely: for each of them its id and log-probability, then those of the likeliest; empty
            where nobody asked.
        ended: there is no more.
    """

    tokens: Sequence[int]
    likely: Sequence[Sequence[tuple[int, float]]]
    ended: bool


def body_of(
    model: str,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    seed: int | None,
    ends: Sequence[int],
    whole: bool,
    errand: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """A request for one answer.

    Everything that changes an answer is said, so that what the server takes from a checkpoint's
    generation_config.json does not leak in. Stop strings are not sent: texts are made here.

    Args:
        model: name of the weights there.
        ends: ids that end an answer.
        whole: nobody looks at pieces.
        errand: what the connector is to do; None: nothing.
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt),
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
        "seed": seed,
        "ignore_eos": True,  # `stop_token_ids` are all that ends an answer
        "stop_token_ids": list(ends),
        "return_token_ids": True,
    }
    if whole:
        body["stream_interval"] = AT_ONCE
    if sampling.logprobs is not None:
        body |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
    if errand is not None:
        body["kv_transfer_params"] = dict(errand)
    return body


async def events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """The data of server-sent events, of a stream's bytes; comments are left out."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def read_event(event: bytes) -> Said | None:
    """A part of an answer; None: an event of other use.

    Raises:
        EndpointError: the server says that it failed, or nothing that can be understood.
        PromptError: it says that the request is wrong.
    """
    if event == b"[DONE]":
        return None
    try:
        found = json.loads(event)
        if "error" in found:
            error = found["error"]
            raise refusal(int(error.get("code") or 500), error.get("message"))
        if not found["choices"]:
            return None
        choice = found["choices"][0]
        tokens = list(map(int, choice.get("token_ids") or ()))
        logprobs = choice.get("logprobs")
        likely = () if logprobs is None else _likely(tokens, logprobs)
        return Said(tokens, likely, choice.get("finish_reason") is not None)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, PromptError):
            raise
        raise EndpointError(f"it said what cannot be understood: {error!r}") from error


def refusal(status: int, message: object) -> Exception:
    """What to raise for an answer that is none.

    A wrong request is wrong everywhere: PromptError. The rest is worth another server.
    """
    text = " ".join(str(message or "").split())[:LONGEST]
    if status in (400, 413, 422):
        return PromptError(f"vLLM refuses this request: {text}")
    if status in (401, 403):
        return StrangerError(f"it wants another key (status {status}); set GISTKIT_ENDPOINT_KEY")
    if status == 404:
        return StrangerError(f"it does not serve these weights: {text}")
    return EndpointError(f"status {status}: {text}")


def _likely(tokens: Sequence[int], logprobs: Mapping[str, Any]) -> list[list[tuple[int, float]]]:
    tops = logprobs.get("top_logprobs") or [None] * len(tokens)
    own = [float(value) for value in logprobs["token_logprobs"]]
    found = []
    for token, value, top in zip(tokens, own, tops, strict=True):
        best = [(_id(name), float(logprob)) for name, logprob in (top or {}).items()]
        found.append([(token, value), *sorted(best, key=lambda one: -one[1])])
    return found


def _id(name: str) -> int:
    return int(name.removeprefix("token_id:"))
