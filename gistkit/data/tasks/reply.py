"""Answer a customer as the shopkeeper whom the instruction describes."""

from dataclasses import dataclass
from random import Random

from gistkit.data.tasks.base import Facts, draw_facts, join_clauses
from gistkit.data.tasks.words import CITIES, COLOURS, NAMES, NOUNS, NUMBERS

VALUES: dict[str, tuple[str, ...]] = {
    "greeting": ("Hello", "Welcome", "Hi", "Greetings", "Howdy", "Ahoy"),
    "price": NUMBERS,
    "colour": COLOURS,
    "goodbye": ("Thanks", "Bye", "Cheers", "Regards", "Farewell", "Enjoy"),
    "name": NAMES,
    "city": CITIES,
}
CLAUSES: dict[str, tuple[str, ...]] = {
    "greeting": (
        "greet the customer with {}",
        "say {} to the customer",
        "open with {} and the customer's name",
    ),
    "price": (
        "everything costs {} coins",
        "the price is {} coins",
        "ask for {} coins",
        "you charge {} coins",
    ),
    "colour": (
        "you only have {} ones",
        "all your goods are {}",
        "everything in the shop is {}",
    ),
    "goodbye": ("end with {}", "close the reply with {}", "say {} at the end"),
    "name": ("your name is {}", "you are {}", "sign as {}", "they call you {}"),
    "city": ("you live in {}", "you work in {}", "your shop is in {}", "say that you are from {}"),
}
REQUESTS = (
    "{customer} wants a {thing}",
    "{customer} asks for a {thing}",
    "{customer} would like a {thing}",
    "A {thing} for {customer} please",
)


@dataclass(frozen=True)
class Reply:
    """Two, four or six facts; the customer and the thing come from the input.

    For example `Your name is Mira, greet the customer with Hello. Everything costs nine coins.`
    answers `Tom wants a cake` by `Hello Tom, one cake, nine coins, Mira`.
    """

    name: str = "reply"

    def facts(self, difficulty: int, rng: Random) -> Facts:
        return draw_facts(VALUES, 2 * difficulty, rng)

    def instruction(self, facts: Facts, rng: Random) -> str:
        return join_clauses([rng.choice(CLAUSES[fact]).format(value) for fact, value in facts], rng)

    def input(self, difficulty: int, rng: Random) -> str:
        return rng.choice(REQUESTS).format(customer=rng.choice(NAMES), thing=rng.choice(NOUNS))

    def answer(self, facts: Facts, input: str) -> str:
        values = dict(facts)
        words = input.split()
        customer = next(word for word in words if word in NAMES)
        thing = next(word for word in words if word in NOUNS)
        parts = [
            f"{values['greeting']} {customer}" if "greeting" in values else customer,
            f"one {values['colour']} {thing}" if "colour" in values else f"one {thing}",
        ]
        if "price" in values:
            parts.append(f"{values['price']} coins")
        parts += [values[fact] for fact in ("goodbye", "name", "city") if fact in values]
        return ", ".join(parts)
