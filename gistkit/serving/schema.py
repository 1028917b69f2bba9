"""Bodies of requests and responses.

Unknown fields of requests are refused: a setting that is silently ignored gives a wrong answer.
Responses are built as plain dicts; their models here serve the OpenAPI document, and tests compare.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from gistkit.prompts import Turn

ID = r"^[0-9a-f]{64}$"
CHOICE = r"^(auto|off|[0-9a-f]{64})$"

MAX_ANSWERS = 16
"""Answers to one request: prompts x n."""


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("not valid text: half of a surrogate pair") from None
    return text


# the limit of the body is reached first unless it was raised
Text = Annotated[str, Field(max_length=4 * 2**20), AfterValidator(_utf8)]
Name = Annotated[str, Field(max_length=256), AfterValidator(_utf8)]
Stop = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_utf8)]
Count = Annotated[int, Field(ge=1, le=16_384)]
K = Annotated[int, Field(ge=1, le=4096)]
Zero = Annotated[float, Field(ge=0, le=0)]
Nothing = Annotated[dict[str, Any], Field(max_length=0)]
Ttl = Annotated[float, Field(gt=0, le=10 * 366 * 86_400.0, allow_inf_nan=False)]  # ten years
GistField = Annotated[
    str,
    Field(
        pattern=CHOICE,
        description="auto: use the instruction's gist, compressed now or taken from the store. "
        "off: the full prompt. An id: this gist.",
    ),
]


class Strict(BaseModel):
    """A request without unknown fields, and without strings for numbers."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = False


class Part(BaseModel):
    """A part of a message; `cache_control` and the like are accepted and ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """A message of a conversation; `name`, `cache_control` and the like are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(max_length=256)]
    # fields of an answer without tools and audio that a client sends back
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: None = None
    audio: None = None

    @property
    def text(self) -> str:
        """The whole text, one line for each part."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)


class CompletionOptions(Strict):
    """Fields that both kinds of completions share."""

    model: Name
    n: Annotated[int, Field(ge=1, le=MAX_ANSWERS)] | None = 1
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = Field(
        0, description="0, the default, is greedy."
    )
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = 1
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    gist: GistField | None = None
    gist_tokens: K | None = Field(None, description="k: one the model was trained for.")

    # accepted without effect
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    cache_control: Any = None
    # supported at the values that change nothing
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    logit_bias: Nothing | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def token_limit(self) -> int | None:
        """Tokens of each answer, at most; None: not given."""
        return self.max_tokens

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class PlainText(Strict):
    type: Literal["text"]


class ChatRequest(CompletionOptions):
    default_max_tokens: ClassVar = 512

    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    response_format: PlainText | None = None
    modalities: list[Literal["text"]] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: Any = None

    @property
    def instruction(self) -> str:
        """The leading system and developer messages as one text."""
        return "\n\n".join(message.text for message in self.messages[: self._leading])

    @property
    def inputs(self) -> list[Sequence[Turn] | str]:
        """The rest of the conversation; "" where there is none."""
        rest = self.messages[self._leading :]
        return [[Turn(message.role, message.text) for message in rest] or ""]

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """Number of likeliest tokens to report; None: no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def _leading(self) -> int:
        roles = (message.role in ("system", "developer") for message in self.messages)
        return len(list(takewhile(bool, roles)))


class CompletionRequest(CompletionOptions):
    default_max_tokens: ClassVar = 16  # as OpenAI

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_ANSWERS)]
    instruction: Text = Field("", description="What the gist replaces; the prompt is the input.")
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None

    @property
    def inputs(self) -> Sequence[Sequence[Turn] | str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs


class NewGist(Strict):
    instruction: Text
    k: K | None = Field(None, description="Default: the model's first trained number.")
    pinned: bool | None = Field(None, description="Never evict it for room.")
    ttl: Ttl | None = Field(None, description="Seconds until it expires.")


class GistChange(Strict):
    pinned: bool


class Check(Strict):
    instruction: Text
    probes: Annotated[list[Text], Field(max_length=64)] | None = Field(
        None, description="Inputs like those to come. Without any, the model generates some."
    )


class Exact(BaseModel):
    """A response with exactly these fields."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetails(Exact):
    """What went wrong; `code` is for programs, `param` the field that is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(Exact):
    """Every response that is not a success, in OpenAI's format."""

    error: ErrorDetails


class PromptTokensDetails(Exact):
    """Of the prompt's tokens, those whose activations came with the gist."""

    cached_tokens: int


class Usage(Exact):
    """Tokens; those of the instruction that the gist replaced; bytes of keys and values."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    replaced_tokens: int
    kv_bytes: int


class GistUse(Exact):
    """How the instruction was read: used, off, or refused for a reason and read in full."""

    id: str | None
    k: int | None
    instruction_tokens: int | None
    status: Literal["used", "off", "refused"]
    reason: str | None


class CompletionResponse(Exact):
    """Fields that both kinds of completions share."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None
    usage: Usage
    gist: GistUse


class ChatMessage(Exact):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Exact):
    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class ChatResponse(CompletionResponse):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextChoice(Exact):
    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class TextResponse(CompletionResponse):
    object: Literal["text_completion"]
    choices: list[TextChoice]


class GistInfo(Exact):
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


class GistList(Exact):
    object: Literal["list"]
    data: list[GistInfo]
    has_more: bool


class GistDeleted(Exact):
    id: str
    object: Literal["gist"]
    deleted: Literal[True]


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorResponse, "description": "An invalid request, or too many requests"},
    "5XX": {"model": ErrorResponse, "description": "The server cannot answer now"},
}


def streamed(answer: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The success of a route that answers whole, or as server-sent events with `stream`."""
    events: dict[str, Any] = {"text/event-stream": {}}  # tools read a schema as that of one event
    return {200: {"model": answer, "description": "The answer", "content": events}}
