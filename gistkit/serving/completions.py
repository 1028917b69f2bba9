"""`/v1/chat/completions` and `/v1/completions`: what differs between the two.

In a chat the leading system messages are the instruction. In a plain completion the prompt is the
input, and `instruction` is what a gist replaces.
"""

import time
from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from gistkit.serving.api_errors import ApiError
from gistkit.serving.engine import StreamChunk, TokenLogprob
from gistkit.serving.responses import Choice, Completion, Event, respond, start, unless_gone
from gistkit.serving.schema import (
    CHOICE,
    ChatRequest,
    ChatResponse,
    CompletionRequest,
    TextResponse,
    streamed,
)
from gistkit.serving.settings import MAX_ANSWERS

MIN_LOGPROB = -9999.0
"""OpenAI's number for log-probabilities that JSON cannot express."""

router = APIRouter()
XGist = Annotated[str | None, Header(pattern=CHOICE)]


@router.post(
    "/v1/chat/completions", summary="Answer a conversation", responses=streamed(ChatResponse)
)
async def chat(request: Request, body: ChatRequest, x_gist: XGist = None) -> Response:
    """OpenAI's, with `gist` and `gist_tokens`; see docs/serving.md."""
    (turns,) = body.inputs
    if not isinstance(turns, str):
        if any(turn.role not in ("user", "assistant") for turn in turns):
            raise _misplaced("system and developer messages must come first")
        if turns[-1].role != "user":
            raise _misplaced("the last message must be the user's")
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    completion = await unless_gone(request, start(request, body, x_gist))
    format = ChatFormat(completion, body)
    return await respond(request, completion, format, stream=body.stream)


@router.post(
    "/v1/completions", summary="Answer one or more inputs", responses=streamed(TextResponse)
)
async def complete(request: Request, body: CompletionRequest, x_gist: XGist = None) -> Response:
    """OpenAI's, with `instruction`, `gist` and `gist_tokens`; see docs/serving.md."""
    if len(body.inputs) * (body.n or 1) > MAX_ANSWERS:
        message = f"prompts times n must be at most {MAX_ANSWERS}"
        raise ApiError(400, message, param="n", code="invalid_value")
    completion = await unless_gone(request, start(request, body, x_gist))
    format = TextFormat(completion, body)
    return await respond(request, completion, format, stream=body.stream)


class ChatFormat:
    """Answers as messages."""

    def __init__(self, completion: Completion, body: ChatRequest) -> None:
        self._completion = completion
        self._logprobs, self._usage = bool(body.logprobs), body.include_usage
        self._head = _head(completion, "chatcmpl")
        self._event_head: Event = {**self._head, "object": "chat.completion.chunk"}
        if self._usage:
            self._event_head = {**self._event_head, "usage": None}

    def response(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """See `Format.response`."""
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": None},
                    "logprobs": _chat_logprobs(choice.logprobs) if self._logprobs else None,
                    "finish_reason": choice.finish,
                }
                for index, choice in enumerate(choices)
            ],
            "usage": self._completion.usage(),
            "gist": self._completion.gist.to_json(),
        }

    def first(self) -> Iterator[Event]:
        """See `Format.first`."""
        gist = self._completion.gist.to_json()
        for index in range(self._completion.num_choices):
            delta = {"role": "assistant", "content": "", "refusal": None}
            yield {**self._event(index, delta), "gist": gist}

    def chunk(self, chunk: StreamChunk) -> Iterator[Event]:
        """See `Format.chunk`."""
        if chunk.text or chunk.logprobs:
            logprobs = _chat_logprobs(chunk.logprobs) if self._logprobs else None
            yield self._event(chunk.index, {"content": chunk.text}, logprobs=logprobs)
        if chunk.finish:
            yield self._event(chunk.index, {}, finish_reason=chunk.finish)

    def last(self) -> Iterator[Event]:
        """See `Format.last`."""
        if self._usage:
            yield _usage_event(self._event_head, self._completion)

    def _event(self, index: int, delta: dict[str, Any], **more: Any) -> Event:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return {**self._event_head, "choices": [choice | more]}


class TextFormat:
    """Answers as plain text."""

    def __init__(self, completion: Completion, body: CompletionRequest) -> None:
        self._completion = completion
        self._logprobs, self._usage = body.logprobs is not None, body.include_usage
        self._head = {**_head(completion, "cmpl"), "object": "text_completion"}
        self._event_head: Event = {**self._head, "usage": None} if self._usage else self._head
        self._offsets = [0] * completion.num_choices
        self._begun = False

    def response(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """See `Format.response`."""
        return {
            **self._head,
            "choices": [
                self._choice(index, choice.text, choice.logprobs, choice.finish)
                for index, choice in enumerate(choices)
            ],
            "usage": self._completion.usage(),
            "gist": self._completion.gist.to_json(),
        }

    def first(self) -> Iterator[Event]:
        """See `Format.first`."""
        yield from ()

    def chunk(self, chunk: StreamChunk) -> Iterator[Event]:
        """See `Format.chunk`."""
        choice = self._choice(chunk.index, chunk.text, chunk.logprobs, chunk.finish)
        gist = {} if self._begun else {"gist": self._completion.gist.to_json()}
        self._begun = True
        yield {**self._event_head, "choices": [choice], **gist}

    def last(self) -> Iterator[Event]:
        """See `Format.last`."""
        if self._usage:
            yield _usage_event(self._event_head, self._completion)

    def _choice(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob], finish: str | None
    ) -> dict[str, Any]:
        found = None
        if self._logprobs:
            found = _text_logprobs(logprobs, self._offsets[index])
            self._offsets[index] += sum(len(token.token) for token in logprobs)
        return {"index": index, "text": text, "logprobs": found, "finish_reason": finish}


def _head(completion: Completion, prefix: str) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid4().hex}",
        "created": int(time.time()),
        "model": completion.model,
        "system_fingerprint": None,
    }


def _usage_event(head: Event, completion: Completion) -> Event:
    return {**head, "choices": [], "usage": completion.usage(), "gist": completion.gist.to_json()}


def _chat_logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    def entry(text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode())}

    return {
        "content": [
            {
                **entry(token.token, token.logprob),
                "top_logprobs": [entry(text, value) for text, value in token.top],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def _text_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        "top_logprobs": [{text: _finite(value) for text, value in token.top} for token in tokens],
        "text_offset": offsets,
    }


def _finite(logprob: float) -> float:
    return logprob if isfinite(logprob) else MIN_LOGPROB


def _misplaced(message: str) -> ApiError:
    return ApiError(400, message, param="messages", code="invalid_value")
