"""`/v1/completions`: the prompt is the input; `instruction` is what a gist replaces."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Header, Request
from starlette.responses import Response

from gistkit.serving.answers import TextAnswer, streamed
from gistkit.serving.engine import TokenLogprob
from gistkit.serving.failures import ApiError, Json
from gistkit.serving.limits import COMPLETION_TOKENS, MAX_ANSWERS
from gistkit.serving.replies import Reply, begin, finite, stamp, unless_gone
from gistkit.serving.schema import CHOICE, CompletionRequest
from gistkit.serving.service import service_of
from gistkit.serving.sse import Events

router = APIRouter()


@router.post("/v1/completions", summary="Answer one or more inputs", responses=streamed(TextAnswer))
async def complete(
    request: Request,
    body: CompletionRequest,
    x_gist: Annotated[str | None, Header(pattern=CHOICE)] = None,
) -> Response:
    """As OpenAI's, with `instruction`, `gist` and `gist_tokens`; see docs/serving.md."""
    service = service_of(request)
    if len(body.prompts) * (body.n or 1) > MAX_ANSWERS:
        message = f"prompts times n must be at most {MAX_ANSWERS}"
        raise ApiError(400, message, param="n", code="invalid_value")
    reply = await unless_gone(
        request,
        begin(
            service,
            request,
            body,
            instruction=body.instruction,
            inputs=body.prompts,
            header=x_gist,
            max_tokens=body.max_tokens,
            fallback=COMPLETION_TOKENS,
            logprobs=body.logprobs,
        ),
    )
    head = {
        "id": f"cmpl-{uuid4().hex}",
        "object": "text_completion",
        "created": stamp(),
        "model": service.engine.name,
        "system_fingerprint": None,
    }
    wanted = body.logprobs is not None
    if body.stream:
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return Events(reply, _chunks(reply, head, usage=usage, logprobs=wanted))
    try:
        answers = await unless_gone(request, reply.whole())
    finally:
        await reply.close()
    choices = [
        {
            "index": index,
            "text": answer.text,
            "logprobs": _logprobs(answer.logprobs, 0) if wanted else None,
            "finish_reason": answer.finish,
        }
        for index, answer in enumerate(answers)
    ]
    return Json(
        {**head, "choices": choices, "usage": reply.usage(), "gist": reply.choice.to_json()}
    )


async def _chunks(
    reply: Reply, head: dict[str, Any], *, usage: bool, logprobs: bool
) -> AsyncIterator[dict[str, Any]]:
    gist = reply.choice.to_json()
    if usage:
        head = {**head, "usage": None}
    offsets = [0] * reply.answers
    first = True
    async with aclosing(reply.pieces()) as pieces:
        async for piece in pieces:
            said = _logprobs(piece.logprobs, offsets[piece.index]) if logprobs else None
            offsets[piece.index] += sum(len(token.token) for token in piece.logprobs)
            choice = {
                "index": piece.index,
                "text": piece.text,
                "logprobs": said,
                "finish_reason": piece.finish,
            }
            yield {**head, "choices": [choice], **({"gist": gist} if first else {})}
            first = False
    if usage:
        yield {**head, "choices": [], "usage": reply.usage(), "gist": gist}


def _logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return {
        "tokens": [token.token for token in tokens],
        "token_logprobs": [finite(token.logprob) for token in tokens],
        "top_logprobs": [{text: finite(value) for text, value in token.top} for token in tokens],
        "text_offset": offsets,
    }
