"""Truncation: the first or the last k tokens of the instruction."""

from dataclasses import dataclass

from gistkit.compare.method import Method, cached, instruction_ids
from gistkit.gist import Prefix
from gistkit.model import GistModel


@dataclass(frozen=True)
class Truncation(Method):
    """The cache of the instruction's beginning, or of its end."""

    last: bool = False

    @property
    def name(self) -> str:
        return "last tokens" if self.last else "first tokens"

    def prepare(self, model: GistModel, instruction: str, budget: int) -> Prefix | None:
        return cached(model, cut(model, instruction, budget, last=self.last))


def cut(model: GistModel, text: str, tokens: int, *, last: bool = False) -> str:
    """`text` where it has at most so many tokens, else its first (or last) ones as text."""
    ids = instruction_ids(model, text)
    if len(ids) <= tokens:
        return text
    # as text, a piece may come out as more tokens than it was: then one less
    for count in range(tokens, 0, -1):
        piece = ids[-count:] if last else ids[:count]
        shorter = str(model.tokenizer.decode(piece)).strip()
        if len(instruction_ids(model, shorter)) <= tokens:
            return shorter
    return ""
