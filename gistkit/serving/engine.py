"""What a server needs of whatever computes: the interface between the HTTP front and an engine.

    front ── Prompt, Gist or none, Sampling ──> Engine.answer ── Deltas ──> front

The transformers engine runs in this process; others may sit behind the same calls. Text
in, text out: the front knows no tokens beyond their number. All calls are made on one event loop.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from gistkit.gist import Gist
from gistkit.prompts import Turn

Finish = Literal["stop", "length"]
"""Why an answer ended: an end token or a stop string, or `max_tokens`."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one answer is to be drawn.

    Attributes:
        max_tokens: at most so many.
        temperature: 0 is greedy.
        top_p: of the likeliest tokens, so much probability.
        seed: the same seed gives the same answer, whatever else is in the batch.
        stop: strings that end the answer and are not part of it.
        n: answers to the one prompt.
        logprobs: log-probabilities of the tokens drawn, and of so many likeliest; None: none.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked.

    Attributes:
        instruction: the text before the gist; "" where there is none. Ignored with a gist.
        turns: the conversation, at least one turn; or one plain input.
    """

    instruction: str
    turns: Sequence[Turn] | str

    @property
    def characters(self) -> int:
        """Of all its texts together."""
        turns = self.turns
        texts = [turns] if isinstance(turns, str) else [turn.text for turn in turns]
        return len(self.instruction) + sum(map(len, texts))


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token's log-probability (natural logarithm) under temperature 1.

    Attributes:
        token: its text.
        logprob: of the token itself.
        top: text and log-probability of the likeliest, best first.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """More of an answer.

    Attributes:
        index: which of the n answers.
        text: what is new; stop strings, and what may yet become one, are held back.
        tokens: how many tokens were drawn since the last one; an end token counts.
        logprobs: of these tokens, where asked for; an end token has none.
        finish: set on the last one of this answer.
    """

    index: int
    text: str
    tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None

    def __add__(self, later: "Delta") -> "Delta":
        """Both as one; `later` is the next of the same answer."""
        return Delta(
            self.index,
            self.text + later.text,
            self.tokens + later.tokens,
            self.logprobs + later.logprobs,
            later.finish,
        )


@dataclass(frozen=True, slots=True)
class Size:
    """What a prompt takes.

    Attributes:
        tokens: of the whole prompt as the model sees it, gist tokens or instruction included.
        cached: of these, tokens whose activations came with the gist and are not computed again.
        kv_bytes: keys and values of one answer at the most, `max_tokens` included.
    """

    tokens: int
    cached: int
    kv_bytes: int


class Engine(Protocol):
    """Something that compresses and answers."""

    name: str
    """The model's id as clients know it."""

    trained: tuple[int, ...]
    """The numbers of gist tokens that it can be asked for; the first is the default."""

    max_length: int | None
    """Tokens of a prompt and its answer together, at most."""

    async def start(self) -> None:
        """Make ready; called once, before anything else."""

    async def stop(self) -> None:
        """End what is running, and let go of everything."""

    async def compress(
        self, instruction: str, num_gist_tokens: int | None = None
    ) -> tuple[str, Gist]:
        """Id and gist of an instruction: from the store, or compressed once and kept there.

        Raises:
            PromptError: the instruction cannot be compressed (empty, too long, `<GIST>` inside).
            OptionError: a k the model was not trained for.
            BusyError: too much is waiting.
        """

    async def measure(
        self, id: str, instruction: str, probes: Sequence[str]
    ) -> Mapping[str, object]:
        """Fidelity of a stored gist on `probes` (`Fidelity.to_json`), kept with the gist."""

    def size(self, prompt: Prompt, gist: Gist | None, sampling: Sampling) -> Size:
        """What this prompt takes (raises PromptError: it cannot be a prompt, or is too long).

        For long prompts it is called from another thread.
        """

    def answer(
        self,
        prompt: Prompt,
        gist: Gist | None,
        sampling: Sampling,
        *,
        client: str = "",
        id: str = "",
        whole: bool = False,
    ) -> AsyncGenerator[Delta, None]:
        """Answers, piece by piece, as they come; closing the iterator cancels what is left.

        Args:
            gist: stands for the instruction, where it is given.
            client: whose turn it is in the queue: clients get their turns one after another,
                however many requests each has waiting.
            id: under which the store has the gist.
            whole: nobody is told a piece before all are there, so what fails half way may begin
                anew.

        Raises (at the first piece):
            PromptError: not a prompt, too long, or more than there is memory for at any time.
            OptionError: a sampling that means nothing, or more answers than may run at once.
            GistMismatchError: another model's gist.
            BusyError: the queue is full, or memory ran out.
            UnavailableError: the engine stopped, or failed at this request.
        """

    @property
    def works(self) -> bool:
        """False once it can answer nobody any more; the server then says that it is not ready."""
        return True

    def stats(self) -> Mapping[str, float]:
        """`running` and `waiting` requests, `kv_bytes` reserved of `kv_limit`; `steps`, `tokens`.

        The last two count since the start.
        """
