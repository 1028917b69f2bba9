"""What requests may hold. Anything else is refused: a setting ignored is a wrong answer."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from gistkit.prompts import Turn
from gistkit.serving import limits

ID = r"^[0-9a-f]{64}$"
CHOICE = r"^(auto|off|[0-9a-f]{64})$"


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("not valid text: half of a surrogate pair") from None
    return text


Text = Annotated[str, Field(max_length=limits.MAX_TEXT), AfterValidator(_utf8)]
Name = Annotated[str, Field(max_length=256), AfterValidator(_utf8)]
Stop = Annotated[str, Field(min_length=1, max_length=limits.MAX_STOP_LENGTH), AfterValidator(_utf8)]
Count = Annotated[int, Field(ge=1, le=limits.MAX_TOKENS)]
K = Annotated[int, Field(ge=1, le=limits.MAX_K)]
Zero = Annotated[float, Field(ge=0, le=0)]
Nothing = Annotated[dict[str, Any], Field(max_length=0)]
Ttl = Annotated[float, Field(gt=0, le=limits.MAX_TTL, allow_inf_nan=False)]
Choice = Annotated[
    str,
    Field(
        pattern=CHOICE,
        description="auto: the instruction is compressed, or its gist taken from the store. off: "
        "the full prompt. An id: this gist.",
    ),
]


class Strict(BaseModel):
    """No unknown fields, and no strings for numbers."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(BaseModel):
    """Of a streamed answer."""

    model_config = ConfigDict(extra="ignore", strict=True)

    include_usage: bool | None = False


class Part(BaseModel):
    """A piece of a message; `cache_control` and the like are accepted and ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """One message of a conversation; `name`, `cache_control` and the like are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(max_length=limits.MAX_PARTS)]
    # what an answer without tools and sound has, when it comes back
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None
    function_call: None = None
    audio: None = None

    @property
    def text(self) -> str:
        """All of it; parts stand on lines of their own."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)

    @property
    def instructs(self) -> bool:
        """Whether it can be part of the instruction."""
        return self.role in ("system", "developer")


class Asking(Strict):
    """What both kinds of completions share."""

    model: Name
    n: Annotated[int, Field(ge=1, le=limits.MAX_ANSWERS)] | None = 1
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = Field(
        0, description="0, the default, is greedy."
    )
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = 1
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=limits.MAX_STOPS)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    gist: Choice | None = None
    gist_tokens: K | None = Field(None, description="k: one the model was trained for.")

    # said by clients, of no meaning here
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


class PlainText(Strict):
    """The only format of answers."""

    type: Literal["text"]


class ChatRequest(Asking):
    """Body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=limits.MAX_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=limits.MAX_LOGPROBS)] | None = None

    response_format: PlainText | None = None
    modalities: list[Literal["text"]] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: Any = None

    @property
    def instruction(self) -> str:
        """The messages of system and developer that begin the conversation, as one text."""
        return "\n\n".join(message.text for message in self.messages[: self._leading])

    @property
    def turns(self) -> Sequence[Turn] | str:
        """The rest of it; "" where there is none."""
        rest = self.messages[self._leading :]
        return [Turn(message.role, message.text) for message in rest] or ""

    @property
    def _leading(self) -> int:
        for number, message in enumerate(self.messages):
            if not message.instructs:
                return number
        return len(self.messages)


class CompletionRequest(Asking):
    """Body of `/v1/completions`."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=limits.MAX_ANSWERS)]
    instruction: Text = Field("", description="What the gist replaces; the prompt is the input.")
    logprobs: Annotated[int, Field(ge=0, le=limits.MAX_COMPLETION_LOGPROBS)] | None = None

    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None

    @property
    def prompts(self) -> list[str]:
        """One or more."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


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
    probes: Annotated[list[Text], Field(max_length=limits.MAX_PROBES)] | None = Field(
        None, description="Inputs like those to come. Without any, the model draws some."
    )
