"""`/v1/chat/completions`: the leading system messages are the instruction."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from gistkit.serving.answers import ChatAnswer, streamed
from gistkit.serving.engine import TokenLogprob
from gistkit.serving.failures import ApiError, Json
from gistkit.serving.limits import CHAT_TOKENS
from gistkit.serving.replies import Reply, begin, finite, stamp, unless_gone
from gistkit.serving.schema import CHOICE, ChatRequest
from gistkit.serving.service import service_of
from gistkit.serving.sse import Events

router = APIRouter()


@router.post(
    "/v1/chat/completions", summary="Answer a conversation", responses=streamed(ChatAnswer)
)
async def chat(
    request: Request,
    body: ChatRequest,
    x_gist: Annotated[str | None, Header(pattern=CHOICE)] = None,
) -> Response:
    """As OpenAI's, with `gist` and `gist_tokens`; see docs/serving.md."""
    service = service_of(request)
    turns = body.turns
    if not isinstance(turns, str):
        if any(turn.role not in ("user", "assistant") for turn in turns):
            raise _misplaced("system and developer messages stand at the beginning only")
        if turns[-1].role != "user":
            raise _misplaced("the last message must be the user's")
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    reply = await unless_gone(
        request,
        begin(
            service,
            request,
            body,
            instruction=body.instruction,
            inputs=[turns],
            header=x_gist,
            max_tokens=body.max_completion_tokens or body.max_tokens,
            fallback=CHAT_TOKENS,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        ),
    )
    head = {
        "id": f"chatcmpl-{uuid4().hex}",
        "created": stamp(),
        "model": service.engine.name,
        "system_fingerprint": None,
    }
    if body.stream:
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return Events(reply, _chunks(reply, head, usage=usage, logprobs=bool(body.logprobs)))
    try:
        answers = await unless_gone(request, reply.whole())
    finally:
        await reply.close()
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": _logprobs(answer.logprobs) if body.logprobs else None,
            "finish_reason": answer.finish,
        }
        for index, answer in enumerate(answers)
    ]
    return Json(
        {
            **head,
            "object": "chat.completion",
            "choices": choices,
            "usage": reply.usage(),
            "gist": reply.choice.to_json(),
        }
    )


async def _chunks(
    reply: Reply, head: dict[str, Any], *, usage: bool, logprobs: bool
) -> AsyncIterator[dict[str, Any]]:
    head = {**head, "object": "chat.completion.chunk"}
    if usage:
        head["usage"] = None
    gist = reply.choice.to_json()

    def chunk(index: int, delta: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {
            **head,
            "choices": [
                {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
            ],
        }

    for index in range(reply.answers):
        yield {**chunk(index, {"role": "assistant", "content": "", "refusal": None}), "gist": gist}
    async with aclosing(reply.pieces()) as pieces:
        async for piece in pieces:
            if piece.text or piece.logprobs:
                said = _logprobs(piece.logprobs) if logprobs else None
                yield chunk(piece.index, {"content": piece.text}, logprobs=said)
            if piece.finish:
                yield chunk(piece.index, {}, finish_reason=piece.finish)
    if usage:
        yield {**head, "choices": [], "usage": reply.usage(), "gist": gist}


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    def one(text: str, logprob: float) -> dict[str, Any]:
        return {"token": text, "logprob": finite(logprob), "bytes": list(text.encode())}

    return {
        "content": [
            {
                **one(token.token, token.logprob),
                "top_logprobs": [one(text, value) for text, value in token.top],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def _misplaced(message: str) -> ApiError:
    return ApiError(400, message, param="messages", code="invalid_value")
