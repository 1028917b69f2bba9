"""Translate each colour by the codebook of the instruction: one code for each colour."""

from dataclasses import dataclass
from random import Random

from gistkit.data.tasks.base import Facts
from gistkit.data.tasks.words import COLOURS, LABELS

KEYS = COLOURS[:5]
OTHER = "other"
OPENINGS = ("", "", "Translate each word. ", "Use this code. ", "Go through the words one by one. ")
FIRST = ("say {label} for {key}", "for {key} write {label}", "answer {label} for {key}")
NEXT = (
    "{label} for {key}",
    "for {key} {label}",
    "say {label} for {key}",
    "for {key} write {label}",
)
ELSE = (
    "{label} for anything else",
    "otherwise {label}",
    "for all the rest write {label}",
    "in any other case {label}",
)


@dataclass(frozen=True)
class Codebook:
    """Codes for two, three or four colours and for the rest; inputs of two or three colours.

    Every code is a fact of its own, so this is the family that needs the most room in a gist. For
    example `Say moon for red, for blue write gold, otherwise iron.` turns `blue green red` into
    `gold iron moon`.
    """

    name: str = "codebook"

    def facts(self, difficulty: int, rng: Random) -> Facts:
        keys = rng.sample(KEYS, difficulty + 1)
        labels = rng.sample(LABELS, len(keys) + 1)
        return tuple(sorted(zip([*keys, OTHER], labels, strict=True)))

    def instruction(self, facts: Facts, rng: Random) -> str:
        """Word each code as a clause, in any order; the one for all the rest comes last."""
        codes = [fact for fact in facts if fact[0] != OTHER]
        rng.shuffle(codes)
        clauses = [
            rng.choice(NEXT if number else FIRST).format(label=label, key=key)
            for number, (key, label) in enumerate(codes)
        ]
        clauses.append(rng.choice(ELSE).format(label=dict(facts)[OTHER]))
        text = clauses[0]
        for clause in clauses[1:]:
            text += rng.choice((", ", "; ", " and ")) + clause
        return rng.choice(OPENINGS) + text[0].upper() + text[1:] + "."

    def input(self, difficulty: int, rng: Random) -> str:
        return " ".join(rng.sample(KEYS, rng.randint(2, 3)))

    def answer(self, facts: Facts, input: str) -> str:
        code = dict(facts)
        return " ".join(code.get(word, code[OTHER]) for word in input.split())
