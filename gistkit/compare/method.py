"""What a method is: an instruction in, what is kept of it out.

A method that shortens text keeps the cache of the shorter prompt (`cached`); one that shortens the
cache makes a `Prefix` of its own. To add one, write such a class and give it a line in
`methods.METHODS`.
"""

from typing import Protocol

from gistkit.gist import Prefix
from gistkit.model import GistModel


class Method(Protocol):
    """One way to keep an instruction between answers."""

    @property
    def name(self) -> str:
        """As the leaderboard calls it."""
        ...

    @property
    def budgeted(self) -> bool:
        """Whether the budget changes what is kept."""
        ...

    @property
    def most_rows(self) -> int | None:
        """Answer only so many rows, where preparing takes long; None: all of them."""
        ...

    def prepare(self, model: GistModel, instruction: str, budget: int) -> Prefix | None:
        """What is kept of `instruction`; None where that is nothing.

        Args:
            budget: k, cache entries that the instruction may take. Methods that shorten text spend
                it on tokens of the instruction and keep the template's words besides.

        Raises:
            OptionError: this model or this budget cannot be used; the message says why.
            PromptError: the instruction cannot be used.
        """
        ...


def cached(model: GistModel, text: str) -> Prefix | None:
    """The cache of a prompt with this instruction, as engines keep it; None where it is blank.

    It ends with as few gist tokens as the model was trained for: in training, full prompts have
    them too, and every one is an entry more.
    """
    if not text.strip():
        return None
    return model.cache_prompt(text, num_gist_tokens=shortest_span(model))


def instruction_ids(model: GistModel, text: str) -> list[int]:
    """The ids of an instruction as they stand in its prompt, the template's own left out.

    Encoded alone, a first word without a space before it may come out as more tokens.
    """
    if not text.strip():
        return []
    one, two = (model.encoder.instruction(mark, 1) for mark in ("-", "a"))
    before = next(place for place, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    pairs = zip(reversed(one), reversed(two), strict=False)
    after = next(place for place, (a, b) in enumerate(pairs) if a != b)
    ids = model.encoder.instruction(text, 1)
    return ids[before : len(ids) - after]


def shortest_span(model: GistModel) -> int:
    """The fewest gist tokens that a prompt of this model was trained with."""
    return min(model.config.num_gist_tokens, default=1)
