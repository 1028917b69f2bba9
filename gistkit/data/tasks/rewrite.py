"""Rewrite a few words: their order and case, what joins them, what stands around them."""

from dataclasses import dataclass
from random import Random

from gistkit.data.tasks.base import Facts, draw_facts, join_clauses
from gistkit.data.tasks.words import JOINERS, LABELS, NOUNS

WORD_JOINERS = {**JOINERS, "bar": " | ", "and": " and ", "or": " or "}
VALUES: dict[str, tuple[str, ...]] = {
    "order": ("reverse", "rotate"),
    "case": ("capitals",),
    "joiner": tuple(WORD_JOINERS),
    "first": LABELS,
    "last": LABELS,
}
CLAUSES: dict[str, tuple[str, ...]] = {
    "reverse": (
        "reverse the order of the words",
        "put the words in reverse order",
        "go from the last word back to the first",
        "list the words backwards",
    ),
    "rotate": (
        "move the first word to the end",
        "put the first word after all the others",
        "let the first word come last",
    ),
    "capitals": (
        "write the words in capitals",
        "use capital letters for the words",
        "turn the words into upper case",
    ),
    "sign": (
        "put a {} between the words",
        "join the words with a {}",
        "use a {} to separate the words",
    ),
    "word": (
        "put the word {} between the words",
        "join the words with the word {}",
        "use the word {} to separate the words",
    ),
    "first": (
        "begin the answer with {}",
        "open with the word {}",
        "say {} before anything else",
        "start by saying {}",
    ),
    "last": (
        "end the answer with {}",
        "close with the word {}",
        "say {} at the very end",
        "finish by saying {}",
    ),
}
OPENINGS = (
    "",
    "",
    "You get a few words. ",
    "Rewrite the words. ",
    "Take the words you are given. ",
)


@dataclass(frozen=True)
class Rewrite:
    """Two, three or four facts; inputs of two or three words.

    For example `Reverse the order of the words, join the words with a dash. Begin the answer with
    moon.` turns `cat rose` into `moon rose - cat`.
    """

    name: str = "rewrite"

    def facts(self, difficulty: int, rng: Random) -> Facts:
        return draw_facts(VALUES, difficulty + 1, rng)

    def instruction(self, facts: Facts, rng: Random) -> str:
        return rng.choice(OPENINGS) + join_clauses([_clause(*fact, rng) for fact in facts], rng)

    def input(self, difficulty: int, rng: Random) -> str:
        return " ".join(rng.sample(NOUNS, rng.randint(2, 3)))

    def answer(self, facts: Facts, input: str) -> str:
        values = dict(facts)
        words = input.split()
        if values.get("order") == "reverse":
            words = words[::-1]
        if values.get("order") == "rotate":
            words = words[1:] + words[:1]
        if "case" in values:
            words = [word.upper() for word in words]
        joined = WORD_JOINERS.get(values.get("joiner", ""), " ").join(words)
        return " ".join(part for part in (values.get("first"), joined, values.get("last")) if part)


def _clause(fact: str, value: str, rng: Random) -> str:
    if fact == "joiner":
        return rng.choice(CLAUSES["word" if value in ("and", "or") else "sign"]).format(value)
    return rng.choice(CLAUSES[value if value in CLAUSES else fact]).format(value)
