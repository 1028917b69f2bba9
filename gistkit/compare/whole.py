"""The two ends: the whole prompt's cache, and no prompt at all."""

from dataclasses import dataclass

from gistkit.compare.method import cached
from gistkit.gist import Prefix
from gistkit.model import GistModel


@dataclass(frozen=True, slots=True)
class FullPrompt:
    """Everything is kept: what engines call prefix caching. See `Method`."""

    name: str = "full prompt"
    budgeted: bool = False
    most_rows: int | None = None

    def prepare(self, model: GistModel, instruction: str, budget: int) -> Prefix | None:
        """The cache of the whole instruction."""
        return cached(model, instruction)


@dataclass(frozen=True, slots=True)
class NoPrompt:
    """Nothing is kept: the answer is a guess. See `Method`."""

    name: str = "no prompt"
    budgeted: bool = False
    most_rows: int | None = None

    def prepare(self, model: GistModel, instruction: str, budget: int) -> None:
        """Nothing."""
        return None
