"""What the load asks: instructions of the model's own tasks, and the right answers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from experiments.serving.client import Ask
from gistkit import Gist, GistModel
from gistkit.data.tasks import FAMILIES
from gistkit.prompts import Turn
from gistkit.stats import quantile

KS = (1, 2, 4, 8)
ANSWER = 64  # tokens at most


@dataclass(frozen=True, slots=True)
class Request:
    """One instruction with an input, and how many gist tokens it gets."""

    instruction: str
    input: str
    k: int


def requests(
    model: GistModel, instructions: int, inputs: int, seed: int, positions: int | None = None
) -> list[Request]:
    """Instructions of the trained tasks with inputs each.

    Args:
        positions: make each prompt as long as fits so many with an answer, by saying the same again
            in other words; None: said once.
    """
    rng = Random(seed)
    found = []
    for number in range(instructions):
        family = FAMILIES[("reply", "notice", "rewrite")[number % 3]]
        level = rng.choice((1, 2, 3))
        facts = family.facts(level, rng)
        texts = [family.input(level, rng) for _ in range(inputs)]
        instruction = family.instruction(facts, rng)
        if positions is not None:
            longest = max(len(model.encoder.input([Turn("user", text)])) for text in texts)
            room = positions - ANSWER - longest - max(KS) - 1
            while True:
                longer = f"{instruction} {family.instruction(facts, rng)}"
                if len(model.encoder.instruction(longer, max(KS))) > room:
                    break
                instruction = longer
        k = KS[number % len(KS)]
        found += [Request(instruction, text, k) for text in texts]
    return found


def chat(one: Request, gist: str = "auto") -> dict[str, Any]:
    """A request as the body of `/v1/chat/completions`."""
    return {
        "model": "toy",
        "messages": [
            {"role": "system", "content": one.instruction},
            {"role": "user", "content": one.input},
        ],
        "max_tokens": ANSWER,
        "gist": gist,
        **({"gist_tokens": one.k} if gist == "auto" else {}),
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def asks(
    of: Sequence[Request], answers: Sequence[str], body: Callable[[Request], Mapping[str, Any]]
) -> list[Ask]:
    """Requests with their right answers."""
    return [Ask(body(one), answer) for one, answer in zip(of, answers, strict=True)]


def alone(model: GistModel, one: Request, gists: Mapping[tuple[str, int], Gist]) -> str:
    """The right answer from its gist."""
    return model.generate(one.input, gists[one.instruction, one.k], max_new_tokens=ANSWER)[0]


def full(model: GistModel, one: Request) -> str:
    """The right answer from the full prompt."""
    return model.generate(one.input, instructions=one.instruction, max_new_tokens=ANSWER)[0]


def gist_of(model: GistModel, one: Request) -> Gist:
    """Its gist."""
    return model.compress(one.instruction, num_gist_tokens=one.k)


def lengths(model: GistModel, of: Sequence[Request]) -> dict[str, float]:
    """Tokens of the prompts."""
    found = sorted(
        len(model.encoder.prompt(one.instruction, one.input, model.config.default_k)) for one in of
    )
    return {"least": found[0], "median": quantile(found, 0.5), "most": found[-1]}
