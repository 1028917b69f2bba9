"""What all families of tasks share: facts, the clauses that state them, and what is held out."""

import hashlib
from collections.abc import Mapping, Sequence
from random import Random
from typing import Protocol

Facts = tuple[tuple[str, str], ...]
"""What an instruction says, apart from its wording: (fact, value) pairs, sorted.

Two instructions with the same facts ask for the same answers.
"""

HELD_OUT = 8
"""One combination of facts in eight, and one input in eight, is never trained on."""


class Family(Protocol):
    """One kind of task.

    `answer` is a function of the facts and the input alone. `input` knows nothing of the facts, so
    that the input gives nothing of the instruction away.
    """

    @property
    def name(self) -> str: ...

    def facts(self, difficulty: int, rng: Random) -> Facts:
        """Draw what the instruction will say: the more difficult, the more facts."""
        ...

    def instruction(self, facts: Facts, rng: Random) -> str:
        """Word `facts` in one of many ways."""
        ...

    def input(self, difficulty: int, rng: Random) -> str:
        """Draw an input: the more difficult, the more words."""
        ...

    def answer(self, facts: Facts, input: str) -> str: ...


def held_out(*key: object) -> bool:
    """Whether `key` belongs to validation, by a hash that is the same on every machine."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return digest[0] % HELD_OUT == 0


def draw_facts(values: Mapping[str, Sequence[str]], n: int, rng: Random) -> Facts:
    """`n` of the facts that `values` names, each with one of its values."""
    names = rng.sample(sorted(values), n)
    return tuple(sorted((name, rng.choice(values[name])) for name in names))


def join_clauses(clauses: Sequence[str], rng: Random) -> str:
    """Clauses in any order as one or more sentences: `put x first, then say y. Also write z.`"""
    shuffled = list(clauses)
    rng.shuffle(shuffled)
    text = shuffled[0]
    for clause in shuffled[1:]:
        text += rng.choice((", ", ", then ", " and ", "; ", ". ")) + clause
    sentences = [sentence[0].upper() + sentence[1:] for sentence in text.split(". ")]
    return ". ".join(sentences) + "."
