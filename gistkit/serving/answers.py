"""What responses hold, for the OpenAPI document. Nothing is made with these: tests compare."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Said(BaseModel):
    """Exactly these fields."""

    model_config = ConfigDict(extra="forbid")


class Mistake(Said):
    """What went wrong; `code` is for programs, `param` the field that is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failure(Said):
    """Every answer that is no success, as OpenAI's."""

    error: Mistake


class Cached(Said):
    """Of the prompt's tokens, those whose activations came with the gist."""

    cached_tokens: int


class Usage(Said):
    """Tokens; those of the instruction that the gist replaced; bytes of keys and values."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: Cached
    replaced_tokens: int
    kv_bytes: int


class GistUse(Said):
    """What became of the instruction: used, off, or refused with a reason and read in full."""

    id: str | None
    k: int | None
    instruction_tokens: int | None
    status: Literal["used", "off", "refused"]
    reason: str | None


class Answered(Said):
    """What both kinds of completions share."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None
    usage: Usage
    gist: GistUse


class ChatMessage(Said):
    """The model's."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Said):
    """One of n."""

    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class ChatAnswer(Answered):
    """Of `/v1/chat/completions`."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextChoice(Said):
    """One of prompts x n."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class TextAnswer(Answered):
    """Of `/v1/completions`."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


class GistFacts(Said):
    """One gist: times in seconds since 1970; `uploaded` ones are found by their id alone."""

    id: str
    object: Literal["gist"]
    k: int
    bytes: int
    instruction_tokens: int
    instruction_sha256: str
    model: str
    uploaded: bool
    created: int
    last_used: int
    expires: int | None
    pinned: bool
    fidelity: dict[str, Any] | None


class GistList(Said):
    """The last used first."""

    object: Literal["list"]
    data: list[GistFacts]
    has_more: bool


class GistGone(Said):
    """After a deletion."""

    id: str
    object: Literal["gist"]
    deleted: Literal[True]


FAILURES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Failure, "description": "A mistake in the request, or too many of them"},
    "5XX": {"model": Failure, "description": "The server cannot answer now"},
}


def streamed(answer: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The success of a route that answers whole, or as server-sent events with `stream`."""
    events: dict[str, Any] = {"text/event-stream": {}}  # tools read a schema as that of one event
    return {200: {"model": answer, "description": "The answer", "content": events}}
