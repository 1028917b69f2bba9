"""Bodies of requests and responses.

Unknown fields of requests are refused: a setting that is silently ignored gives a wrong answer.
Responses are built as plain dicts; their models here serve the OpenAPI document, and tests compare.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from gistkit.prompts import Turn
from gistkit.serving import settings

ID = r"^[0-9a-f]{64}$"
CHOICE = r"^(auto|off|[0-9a-f]{64})$"


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("not valid text: half of a surrogate pair") from None
    return text


Text = Annotated[str, Field(max_length=settings.MAX_TEXT), AfterValidator(_utf8)]
Name = Annotated[str, Field(max_length=256), AfterValidator(_utf8)]
Stop = Annotated[
    str, Field(min_length=1, max_length=settings.MAX_STOP_LENGTH), AfterValidator(_utf8)
]
Count = Annotated[int, Field(ge=1, le=settings.MAX_TOKENS)]
K = Annotated[int, Field(ge=1, le=settings.MAX_K)]
Zero = Annotated[float, Field(ge=0, le=0)]
Nothing = Annotated[dict[str, Any], Field(max_length=0)]
Ttl = Annotated[float, Field(gt=0, le=settings.MAX_TTL, allow_inf_nan=False)]
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
    """Options of a streamed answer."""

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
    content: Text | Annotated[list[Part], Field(max_length=settings.MAX_PARTS)]
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
    n: Annotated[int, Field(ge=1, le=settings.MAX_ANSWERS)] | None = 1
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = Field(
        0, description="0, the default, is greedy."
    )
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = 1
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=settings.MAX_STOPS)] | None = None
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
        """Stop strings."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class PlainText(Strict):
    """The only response format."""

    type: Literal["text"]


class ChatRequest(CompletionOptions):
    """Body of `/v1/chat/completions`."""

    default_max_tokens: ClassVar = settings.CHAT_TOKENS

    messages: Annotated[list[Message], Field(min_length=1, max_length=settings.MAX_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=settings.MAX_LOGPROBS)] | None = None

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
        """Tokens of the answer, at most; None: not given."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """Number of likeliest tokens to report; None: no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def _leading(self) -> int:
        for number, message in enumerate(self.messages):
            if message.role not in ("system", "developer"):
                return number
        return len(self.messages)


class CompletionRequest(CompletionOptions):
    """Body of `/v1/completions`."""

    default_max_tokens: ClassVar = settings.COMPLETION_TOKENS

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=settings.MAX_ANSWERS)]
    instruction: Text = Field("", description="What the gist replaces; the prompt is the input.")
    logprobs: Annotated[int, Field(ge=0, le=settings.MAX_COMPLETION_LOGPROBS)] | None = None

    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None

    @property
    def inputs(self) -> Sequence[Sequence[Turn] | str]:
        """One or more prompts."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def token_limit(self) -> int | None:
        """Tokens of each answer, at most; None: not given."""
        return self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """Number of likeliest tokens to report; None: no log-probabilities."""
        return self.logprobs


class NewGist(Strict):
    """Body of `POST /v1/gists`."""

    instruction: Text
    k: K | None = Field(None, description="Default: the model's first trained number.")
    pinned: bool | None = Field(None, description="Never evict it for room.")
    ttl: Ttl | None = Field(None, description="Seconds until it expires.")


class GistChange(Strict):
    """Body of `PATCH /v1/gists/{id}`."""

    pinned: bool


class Check(Strict):
    """Body of `POST /v1/gists/{id}/check`."""

    instruction: Text
    probes: Annotated[list[Text], Field(max_length=settings.MAX_PROBES)] | None = Field(
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
    """The model's message."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Exact):
    """One of n answers."""

    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class ChatResponse(CompletionResponse):
    """Response of `/v1/chat/completions`."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class TextChoice(Exact):
    """One of prompts x n answers."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class TextResponse(CompletionResponse):
    """Response of `/v1/completions`."""

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
    """Gists, the most recently used first."""

    object: Literal["list"]
    data: list[GistInfo]
    has_more: bool


class GistDeleted(Exact):
    """Response to a deletion."""

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
