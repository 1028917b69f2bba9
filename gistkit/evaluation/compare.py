"""The same input answered from the gist, from the cached prompt, from the full prompt, and without.

Answers, what each way keeps, and what it costs on this machine. The cached prompt is what engines
call prefix caching: the comparison every gist must stand.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from gistkit.errors import OptionError, PromptError
from gistkit.gist import Prefix
from gistkit.model import GistModel
from gistkit.models.inputs import check_numbers

Prepare = Callable[[], Prefix | None]


@dataclass(frozen=True, slots=True)
class Way:
    """One way to answer.

    Attributes:
        name: gist | cached prompt | full prompt | no instruction.
        missing: why this model cannot answer this way; "" where it can.
        output: the answer.
        kept_tokens: prompt tokens kept between answers.
        kept_bytes: memory of their activations.
        read_tokens: prompt tokens read for each answer, the input's included.
        prepare_seconds: to make what is kept, once. Medians, as the next two.
        first_token_seconds: until the first new token.
        total_seconds: until the last.
    """

    name: str
    missing: str = ""
    output: str = ""
    kept_tokens: int = 0
    kept_bytes: int = 0
    read_tokens: int = 0
    prepare_seconds: float = 0.0
    first_token_seconds: float = 0.0
    total_seconds: float = 0.0


def compare(
    model: GistModel,
    instruction: str,
    input: str = "",
    *,
    num_gist_tokens: int | None = None,
    allow_untrained: bool = False,
    max_new_tokens: int = 128,
    repetitions: int = 5,
) -> list[Way]:
    """Answer greedily in all four ways, in turn, in this process; the first round is not timed.

    Args:
        repetitions: timed rounds; times are their medians.

    Raises:
        OptionError: a number below one, or a k that was not trained and not allowed.
        PromptError: the instruction or the input cannot be used.
    """
    check_numbers(max_new_tokens=max_new_tokens, repetitions=repetitions)
    k = model.check_k(num_gist_tokens, allow_untrained=allow_untrained)
    # the full prompt is written as in training; an untrained k has no place in it
    full_k = k if k in model.config.num_gist_tokens else model.config.default_k
    new = len(model.encoder.input(input))
    whole = len(model.encoder.prompt(instruction, input, full_k))

    def compress() -> Prefix:
        return model.compress(instruction, num_gist_tokens=k, allow_untrained=allow_untrained)

    def cache() -> Prefix:
        return model.cache_prompt(instruction, num_gist_tokens=full_k)

    def from_prefix(prefix: Prefix | None, length: int) -> str:
        return model.generate(input, prefix, max_new_tokens=length)[0]

    def from_text(prefix: Prefix | None, length: int) -> str:
        return model.generate(
            input, instructions=instruction, num_gist_tokens=full_k, max_new_tokens=length
        )[0]

    runs = [
        _Run("gist", compress, from_prefix, new, max_new_tokens),
        _Run("cached prompt", cache, from_prefix, new, max_new_tokens),
        _Run("full prompt", lambda: None, from_text, whole, max_new_tokens),
        _Run("no instruction", lambda: None, from_prefix, new, max_new_tokens),
    ]
    for _ in range(repetitions + 1):
        for run in runs:
            run.round()
    return [run.way() for run in runs]


class _Run:
    def __init__(
        self,
        name: str,
        prepare: Prepare,
        answer: Callable[[Prefix | None, int], str],
        read_tokens: int,
        max_new_tokens: int,
    ) -> None:
        self.name, self.prepare, self.answer = name, prepare, answer
        self.read_tokens, self.max_new_tokens = read_tokens, max_new_tokens
        self.missing, self.output = "", ""
        self.prefix: Prefix | None = None
        self.seconds: list[tuple[float, float, float]] = []

    def round(self) -> None:
        """Prepare and answer once, unless an earlier round showed that it cannot be done."""
        if self.missing:
            return
        start = time.perf_counter()
        try:
            self.prefix = self.prepare()
            prepared = time.perf_counter()
            self.answer(self.prefix, 1)
            first = time.perf_counter()
            self.output = self.answer(self.prefix, self.max_new_tokens)
        except (OptionError, PromptError) as error:  # no such cache, or no room for the prompt
            if self.name == "gist":
                raise
            self.missing = str(error)
            return
        end = time.perf_counter()
        self.seconds.append((prepared - start, first - prepared, end - first))

    def way(self) -> Way:
        if self.missing:
            return Way(self.name, missing=self.missing)
        prepare, first, total = map(statistics.median, zip(*self.seconds[1:], strict=True))
        kept = self.prefix
        return Way(
            self.name,
            output=self.output,
            kept_tokens=0 if kept is None else kept.num_tokens,
            kept_bytes=0 if kept is None else kept.num_bytes,
            read_tokens=self.read_tokens,
            prepare_seconds=prepare if kept is not None else 0.0,
            first_token_seconds=first,
            total_seconds=total,
        )
