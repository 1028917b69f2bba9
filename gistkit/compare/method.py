"""The interface of a method: from an instruction to the prefix that is kept of it.

A method that shortens text keeps the cache of the shorter prompt (`cached`); one that shortens the
cache makes a `Prefix` of its own, with keys at positions 0 .. k-1 (`pooling.rotation`). To add one,
write such a class in a file of its own and give it a row in `methods.METHODS`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from gistkit.gist import Prefix
from gistkit.model import GistModel


class Method(ABC):
    """One way to keep an instruction between answers.

    Attributes:
        budgeted: whether the budget changes what is kept.
        most_rows: answer only so many rows, where preparing is slow; None: all of them.
    """

    budgeted = True
    most_rows: int | None = None

    @property
    @abstractmethod
    def name(self) -> str:
        """In the leaderboard."""

    @abstractmethod
    def prepare(self, model: GistModel, instruction: str, budget: int) -> Prefix | None:
        """The prefix that is kept of `instruction`; None where that is nothing.

        Args:
            budget: k, cache entries that the instruction may take. Methods that shorten text spend
                it on tokens of the instruction and keep the template's words besides.

        Raises:
            OptionError: this model or this budget cannot be used; the message says why.
            PromptError: the instruction cannot be used.
        """


def cached(model: GistModel, text: str) -> Prefix | None:
    """The cache of a prompt with this instruction, as engines keep it; None where it is blank.

    It ends with as few gist tokens as the model was trained for: in training, full prompts have
    them too, and every one is an entry more.
    """
    if not text.strip():
        return None
    return model.cache_prompt(text, num_gist_tokens=shortest_span(model))


def shortest_span(model: GistModel) -> int:
    """The fewest gist tokens that a prompt of this model was trained with."""
    return min(model.config.num_gist_tokens, default=1)


def instruction_ids(model: GistModel, text: str) -> list[int]:
    """The ids of an instruction as they are in its prompt, without the template's own.

    Encoded alone, a first word without a space before it may come out as more tokens.
    """
    if not text.strip():
        return []
    one, two = (model.encoder.instruction(mark, 1) for mark in ("-", "a"))
    before = next(i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    pairs = zip(reversed(one), reversed(two), strict=False)
    after = next(i for i, (a, b) in enumerate(pairs) if a != b)
    ids = model.encoder.instruction(text, 1)
    return ids[before : len(ids) - after]


def joined(pieces: Mapping[int, str]) -> str:
    return " ".join(pieces[n].strip() for n in sorted(pieces) if pieces[n].strip())


def fits(model: GistModel, pieces: Mapping[int, str], budget: int) -> bool:
    return len(instruction_ids(model, joined(pieces))) <= budget
