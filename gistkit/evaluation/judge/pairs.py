"""Pairs of answers to the same prompt, and the order in which a judge sees them."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gistkit.errors import DataError, OptionError
from gistkit.evaluation.outputs import matched, read_outputs
from gistkit.metrics import clean
from gistkit.prompts import GIST_TOKEN

SEED = 42  # of the published orders
FIELDS = frozenset({"reason", "choice", "swapped", "x", "row", "usage", "error"})  # of a result

_SPAN = re.compile(rf"\s*(?:{GIST_TOKEN}\s*)+")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to the prompt `x`; `row` counts from 0."""

    row: int
    x: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Question:
    """A pair as shown to a judge: B first where it is `swapped`."""

    pair: Pair
    swapped: bool

    @property
    def key(self) -> tuple[int, bool]:
        """Unique among the questions of a comparison."""
        return self.pair.row, self.swapped


def read_pairs(a: Path, b: Path, names: tuple[str, str]) -> list[Pair]:
    """The pairs of two files of outputs, in the order of `a`.

    Raises:
        DataError: a file cannot be read, they answer different examples, or a prompt has text
            between its gist tokens.
        OptionError: the names are equal, empty, or a field of the results.
    """
    for name in names:
        if not name or name in FIELDS:
            raise OptionError(
                f"an answer cannot be called {name!r}: the results file needs the name"
            )
        if not name.isprintable():  # bytes that are no text, line breaks, a terminal's commands
            raise OptionError(f"an answer cannot be called {name!r}; use printable letters")
    if names[0] == names[1]:
        raise OptionError(f"both answers are called {names[0]!r}; give `a_name` and `b_name`")
    rows, others = read_outputs(a), read_outputs(b)
    try:
        others = matched(rows, others, names=(str(a), str(b)))
    except DataError as error:
        reason = str(error).partition("; ")[0]
        raise DataError(f"{reason}; a judge compares answers to the same examples") from error
    pairs = []
    for row, (output, other) in enumerate(zip(rows, others, strict=True)):
        prompts = question(output.x, f"{a} row {row + 1}"), question(other.x, f"{b} row {row + 1}")
        x = max(prompts, key=len)  # either may be cut off
        pairs.append(Pair(row, x, clean(output.y_pred), clean(other.y_pred)))
    return pairs


def question(x: str, where: str) -> str:
    """A prompt as the judge sees it: without gist tokens and without the "Output:" at its end.

    `where` names it in messages. Raises DataError if there is text between gist tokens.

    >>> question("Instruction: Name it. <GIST> <GIST> Input: 1\\nOutput:", "")
    'Instruction: Name it.\\nInput: 1'
    """
    parts = _SPAN.split(clean(x))
    if len(parts) > 2:
        raise DataError(f"{where}: text between gist tokens ({parts[1][:40]!r}); one span expected")
    return "\n".join(parts).partition("\nOutput:")[0].strip()


def questions(
    pairs: Sequence[Pair], *, seed: int = SEED, both_orders: bool = False
) -> Iterator[Question]:
    """Every pair in the order that `seed` draws, then with `both_orders` in the other order.

    One draw per row, so the order of a row does not depend on how many are judged. Seed 42 gives
    the orders of the published results.
    """
    rng = random.Random(seed)
    drawn = [Question(pair, rng.random() >= 0.5) for pair in pairs]
    yield from drawn
    if both_orders:
        yield from (Question(question.pair, not question.swapped) for question in drawn)
