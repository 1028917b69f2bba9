"""`/v1/chat/completions` and `/v1/completions`: what differs between the two.

In a chat the leading system messages are the instruction. In a plain completion the prompt is the
input, and `instruction` is what a gist replaces.
"""

from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from gistkit.serving.api_errors import ApiError
from gistkit.serving.engine import StreamChunk, TokenLogprob
from gistkit.serving.responses import Completion, Event, Format, respond
from gistkit.serving.schema import (
    CHOICE,
    MAX_ANSWERS,
    ChatRequest,
    ChatResponse,
    CompletionRequest,
    TextResponse,
    streamed,
)

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
    return await respond(request, body, x_gist, ChatFormat)


@router.post(
    "/v1/completions", summary="Answer one or more inputs", responses=streamed(TextResponse)
)
async def complete(request: Request, body: CompletionRequest, x_gist: XGist = None) -> Response:
    """OpenAI's, with `instruction`, `gist` and `gist_tokens`; see docs/serving.md."""
    if len(body.inputs) * (body.n or 1) > MAX_ANSWERS:
        message = f"prompts times n must be at most {MAX_ANSWERS}"
        raise ApiError(400, message, param="n", code="invalid_value")
    return await respond(request, body, x_gist, TextFormat)


class ChatFormat(Format):
    prefix, object, event_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, answer: StreamChunk) -> dict[str, Any]:
        return {
            "index": answer.index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": _chat_logprobs(answer.logprobs) if self.logprobs else None,
            "finish_reason": answer.finish,
        }

    def first(self) -> Iterator[Event]:
        gist = self.completion.gist.to_json()
        for index in range(self.completion.num_choices):
            delta = {"role": "assistant", "content": "", "refusal": None}
            yield {**self._event(index, delta), "gist": gist}

    def chunk(self, chunk: StreamChunk) -> Iterator[Event]:
        if chunk.text or chunk.logprobs:
            logprobs = _chat_logprobs(chunk.logprobs) if self.logprobs else None
            yield self._event(chunk.index, {"content": chunk.text}, logprobs=logprobs)
        if chunk.finish:
            yield self._event(chunk.index, {}, finish_reason=chunk.finish)

    def _event(self, index: int, delta: dict[str, Any], **more: Any) -> Event:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return {**self.event_head, "choices": [choice | more]}


class TextFormat(Format):
    prefix, object, event_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, completion: Completion, body: ChatRequest | CompletionRequest) -> None:
        super().__init__(completion, body)
        self._offsets = [0] * completion.num_choices
        self._begun = False

    def choice(self, answer: StreamChunk) -> dict[str, Any]:
        found = None
        if self.logprobs:
            found = _text_logprobs(answer.logprobs, self._offsets[answer.index])
            self._offsets[answer.index] += sum(len(token.token) for token in answer.logprobs)
        return {
            "index": answer.index,
            "text": answer.text,
            "logprobs": found,
            "finish_reason": answer.finish,
        }

    def chunk(self, chunk: StreamChunk) -> Iterator[Event]:
        gist = {} if self._begun else {"gist": self.completion.gist.to_json()}
        self._begun = True
        yield {**self.event_head, "choices": [self.choice(chunk)], **gist}


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
