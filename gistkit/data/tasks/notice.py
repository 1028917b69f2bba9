"""Announce an event as the instruction lays down: when, where, what to bring, whom to ask."""

from dataclasses import dataclass
from random import Random

from gistkit.data.tasks.base import Facts, draw_facts, join_clauses
from gistkit.data.tasks.words import DAYS, EVENTS, HOURS, ITEMS, NAMES, PLACES

VALUES: dict[str, tuple[str, ...]] = {
    "day": DAYS,
    "hour": HOURS,
    "item": ITEMS,
    "place": PLACES,
}
CLAUSES: dict[str, tuple[str, ...]] = {
    "day": ("it takes place on {}", "we meet on {}", "the day is {}", "all is ready for {}"),
    "hour": ("it starts at {}", "the hour is {}", "doors open at {}", "come at {}"),
    "item": ("everyone must bring a {}", "tell them to bring a {}", "guests bring a {}"),
    "place": ("it is held in the {}", "use the {}", "we meet in the {}", "the place is the {}"),
}
REQUESTS = (
    "{host} plans a {event}",
    "{host} gives a {event}",
    "A {event} by {host}",
    "Announce the {event} of {host}",
)


@dataclass(frozen=True)
class Notice:
    """Two, three or four facts; the event and its host come from the input.

    For example `It starts at noon; use the barn.` turns `Tom plans a picnic` into
    `picnic by Tom at noon in the barn`.
    """

    name: str = "notice"

    def facts(self, difficulty: int, rng: Random) -> Facts:
        return draw_facts(VALUES, difficulty + 1, rng)

    def instruction(self, facts: Facts, rng: Random) -> str:
        return join_clauses([rng.choice(CLAUSES[fact]).format(value) for fact, value in facts], rng)

    def input(self, difficulty: int, rng: Random) -> str:
        return rng.choice(REQUESTS).format(host=rng.choice(NAMES), event=rng.choice(EVENTS))

    def answer(self, facts: Facts, input: str) -> str:
        values = dict(facts)
        words = input.split()
        host = next(word for word in words if word in NAMES)
        event = next(word for word in words if word in EVENTS)
        parts = [f"{event} by {host}"]
        for fact, before in (("day", "on"), ("hour", "at"), ("place", "in the")):
            if fact in values:
                parts.append(f"{before} {values[fact]}")
        if "item" in values:
            parts.append(f"bring a {values['item']}")
        return " ".join(parts)
