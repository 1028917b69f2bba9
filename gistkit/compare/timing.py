"""What each method costs: the same rows, the methods in turn, so that all meet the same machine.

round 1 (not counted)   full prompt, gist, first tokens, ...    each: prepare, one new token
round 2                 full prompt, gist, first tokens, ...
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from gistkit.compare.method import Method
from gistkit.errors import OptionError
from gistkit.model import GistModel
from gistkit.prompts import Example


@dataclass(frozen=True, slots=True)
class Times:
    """Medians over the rounds, in seconds.

    Attributes:
        prepare: to make what is kept; None where that is too slow to be repeated.
        first_token: from an input to its first new token, on top of what is kept.
    """

    prepare: float | None
    first_token: float


def take_times(
    model: GistModel, examples: Sequence[Example], cases: Sequence[tuple[Method, int]]
) -> list[Times | None]:
    """One example a round, the first once more to warm up; None where a method cannot be run.

    Methods that are slow to prepare (`most_rows`) prepare only the first example.
    """
    taken: list[list[tuple[float, float]]] = [[] for _ in cases]
    made = {}
    for number, (method, budget) in enumerate(cases):
        try:
            made[number] = method.prepare(model, examples[0].instruction, budget)
        except OptionError:
            continue
    for example in (examples[0], *examples):
        for number in made:
            method, budget = cases[number]
            start = time.perf_counter()
            kept = made[number]
            if method.most_rows is None:
                kept = method.prepare(model, example.instruction, budget)
            prepared = time.perf_counter()
            model.generate(example.input, kept, max_new_tokens=1)
            taken[number].append((prepared - start, time.perf_counter() - prepared))
    return [
        _medians(rounds[1:], repeated=method.most_rows is None) if rounds else None
        for rounds, (method, _) in zip(taken, cases, strict=True)
    ]


def _medians(rounds: Sequence[tuple[float, float]], *, repeated: bool) -> Times:
    prepare, first = (median(values) for values in zip(*rounds, strict=True))
    return Times(prepare if repeated else None, first)
