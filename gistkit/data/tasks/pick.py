"""Pick facts out of a sentence about a sale: which, in which order, joined by what."""

from dataclasses import dataclass
from random import Random

from gistkit.data.tasks.base import Facts
from gistkit.data.tasks.words import CITIES, COLOURS, JOINERS, LABELS, NAMES, NOUNS, NUMBERS

SENTENCES = (
    "{seller} sold a {colour} {thing} to {buyer} in {city} for {price} coins",
    "In {city} {buyer} paid {price} coins to {seller} for a {colour} {thing}",
    "{buyer} bought a {colour} {thing} from {seller} in {city} for {price} coins",
)
FIELDS: dict[str, tuple[str, ...]] = {
    "seller": ("the seller", "who sold it", "the person who sold"),
    "buyer": ("the buyer", "who bought it", "the person who paid"),
    "thing": ("the thing", "what was sold", "the object"),
    "colour": ("the colour", "which colour it had", "its colour"),
    "city": ("the city", "where it happened", "the place"),
    "price": ("the price", "how much it cost", "the number of coins"),
}
ASK = ("tell me {}", "name {}", "give {}", "write {}", "read the sentence and give {}")
THEN = (" and then {}", ", then {}", ", after that {}", " followed by {}")
JOIN = ("put a {} between them", "join them with a {}", "separate them with a {}")
FIRST = ("begin with {}", "start by saying {}", "open with the word {}")
LAST = ("end with {}", "finish by saying {}", "close with the word {}")


@dataclass(frozen=True)
class Pick:
    """One to three fields of the sentence in a given order, and as many things around them.

    For example `Name who bought it, then the city. Put a dash between them.` turns `Anna sold a red
    hat to Tom in Oslo for nine coins` into `Tom - Oslo`.
    """

    name: str = "pick"

    def facts(self, difficulty: int, rng: Random) -> Facts:
        fields = rng.sample(sorted(FIELDS), difficulty)
        facts = [(f"field {number}", field) for number, field in enumerate(fields, 1)]
        extras: dict[str, tuple[str, ...]] = {"first": LABELS, "last": LABELS}
        if difficulty > 1:
            extras["joiner"] = tuple(JOINERS)
        for extra in rng.sample(sorted(extras), difficulty):
            facts.append((extra, rng.choice(extras[extra])))
        return tuple(sorted(facts))

    def instruction(self, facts: Facts, rng: Random) -> str:
        fields = [rng.choice(FIELDS[value]) for fact, value in facts if fact.startswith("field")]
        text = rng.choice(ASK).format(fields[0])
        for field in fields[1:]:
            text += rng.choice(THEN).format(field)
        wordings = {"joiner": JOIN, "first": FIRST, "last": LAST}
        extras = [
            rng.choice(wordings[fact]).format(value) for fact, value in facts if fact in wordings
        ]
        sentences = [text, *rng.sample(extras, len(extras))]
        return " ".join(sentence[0].upper() + sentence[1:] + "." for sentence in sentences)

    def input(self, difficulty: int, rng: Random) -> str:
        seller, buyer = rng.sample(NAMES, 2)
        return rng.choice(SENTENCES).format(
            seller=seller,
            buyer=buyer,
            colour=rng.choice(COLOURS),
            thing=rng.choice(NOUNS),
            city=rng.choice(CITIES),
            price=rng.choice(NUMBERS),
        )

    def answer(self, facts: Facts, input: str) -> str:
        values = dict(facts)
        fields = _read(input)
        picked = [fields[value] for fact, value in facts if fact.startswith("field")]
        joined = JOINERS.get(values.get("joiner", ""), " ").join(picked)
        return " ".join(part for part in (values.get("first"), joined, values.get("last")) if part)


def _read(sentence: str) -> dict[str, str]:
    """The six fields of a sentence made by `Pick.input`."""
    words = sentence.split()
    names = [word for word in words if word in NAMES]
    first, second = ("seller", "buyer") if "sold" in words else ("buyer", "seller")
    classes = {"thing": NOUNS, "colour": COLOURS, "city": CITIES, "price": NUMBERS}
    found = {
        field: next(word for word in words if word in members) for field, members in classes.items()
    }
    return {first: names[0], second: names[1], **found}
