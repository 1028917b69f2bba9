"""Translate each word by the codebook of the instruction: one code for each kind of thing."""

from dataclasses import dataclass
from random import Random

from gisting.data.tasks.base import Facts
from gisting.data.tasks.words import CATEGORIES, LABELS, NOUNS

KIND = {noun: kind for kind, nouns in CATEGORIES.items() for noun in nouns}
OTHER = "other"
KINDS: dict[str, tuple[str, ...]] = {
    "animal": ("an animal", "any animal", "every animal"),
    "tool": ("a tool", "any tool", "every tool"),
    "food": ("some food", "any food", "all food"),
    "garment": ("a garment", "any garment", "every garment"),
    "vehicle": ("a vehicle", "any vehicle", "every vehicle"),
    "plant": ("a plant", "any plant", "every plant"),
}
OPENINGS = ("", "", "Translate each word. ", "Use this code. ", "Go through the words one by one. ")
FIRST = ("say {label} for {kind}", "for {kind} write {label}", "answer {label} for {kind}")
NEXT = (
    "{label} for {kind}",
    "for {kind} {label}",
    "say {label} for {kind}",
    "for {kind} write {label}",
)
ELSE = (
    "{label} for anything else",
    "otherwise {label}",
    "for all the rest write {label}",
    "in any other case {label}",
)


@dataclass(frozen=True)
class Codebook:
    """Codes for one, three or five kinds of things and for the rest; inputs of three to six words.

    For example `Say moon for an animal, for any tool write gold, otherwise iron.` turns
    `cat rose saw` into `moon iron gold`.
    """

    name: str = "codebook"

    def facts(self, difficulty: int, rng: Random) -> Facts:
        """Draw codes for one, three or five kinds, and one for all the rest."""
        kinds = rng.sample(sorted(CATEGORIES), 2 * difficulty - 1)
        labels = rng.sample(LABELS, len(kinds) + 1)
        return tuple(sorted(zip([*kinds, OTHER], labels, strict=True)))

    def instruction(self, facts: Facts, rng: Random) -> str:
        """Word each code as a clause, in any order; the one for all the rest comes last."""
        codes = [fact for fact in facts if fact[0] != OTHER]
        rng.shuffle(codes)
        clauses = [
            rng.choice(NEXT if place else FIRST).format(label=label, kind=rng.choice(KINDS[kind]))
            for place, (kind, label) in enumerate(codes)
        ]
        clauses.append(rng.choice(ELSE).format(label=dict(facts)[OTHER]))
        text = clauses[0]
        for clause in clauses[1:]:
            text += rng.choice((", ", "; ", " and ")) + clause
        return rng.choice(OPENINGS) + text[0].upper() + text[1:] + "."

    def input(self, difficulty: int, rng: Random) -> str:
        """Draw three to six different words."""
        return " ".join(rng.sample(NOUNS, rng.randint(3, 3 + difficulty)))

    def answer(self, facts: Facts, input: str) -> str:
        """One code for each word."""
        code = dict(facts)
        return " ".join(code.get(KIND[word], code[OTHER]) for word in input.split())
