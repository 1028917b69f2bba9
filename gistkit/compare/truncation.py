"""Truncation: the first or the last k tokens of the instruction."""

from dataclasses import dataclass

from gistkit.compare.method import cached, instruction_ids
from gistkit.gist import Prefix
from gistkit.model import GistModel


@dataclass(frozen=True, slots=True)
class Truncation:
    """See `Method`.

    Attributes:
        last: keep the end instead of the beginning.
    """

    last: bool = False
    budgeted: bool = True
    most_rows: int | None = None

    @property
    def name(self) -> str:
        """See `Method`."""
        return "last tokens" if self.last else "first tokens"

    def prepare(self, model: GistModel, instruction: str, budget: int) -> Prefix | None:
        """The cache of the instruction, cut."""
        return cached(model, cut(model, instruction, budget, last=self.last))


def cut(model: GistModel, text: str, tokens: int, *, last: bool = False) -> str:
    """`text` where it has at most so many tokens, else its first (or last) ones as text."""
    ids = instruction_ids(model, text)
    if len(ids) <= tokens:
        return text
    # written as text, a piece may come out as more tokens than it was: then one less
    for kept in range(tokens, 0, -1):
        piece = ids[-kept:] if last else ids[:kept]
        shorter = str(model.tokenizer.decode(piece)).strip()
        if len(instruction_ids(model, shorter)) <= tokens:
            return shorter
    return ""
