"""Gists of many prompts: each instruction is compressed once, and dropped after its last use."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds to import, and the command line imports this first
    from gistkit.gist import Gist


class Gists:
    """Gists that are made when first needed and dropped after their last use.

    Args:
        compress: makes the gists of several instructions, in one batch.
        instructions: of all prompts to come, repeated as often as they are used.
    """

    def __init__(
        self, compress: "Callable[[list[str]], Gist]", instructions: Sequence[str]
    ) -> None:
        self._compress = compress
        self._uses = Counter(instructions)
        self._made: dict[str, Gist] = {}

    def take(self, instructions: Sequence[str]) -> "list[Gist]":
        """The gist of each instruction; new ones are compressed in one batch."""
        new = [text for text in dict.fromkeys(instructions) if text not in self._made]
        if new:
            self._made.update(zip(new, self._compress(new), strict=True))
        rows = [self._made[text] for text in instructions]
        self._uses.subtract(instructions)
        for text in set(instructions):
            if not self._uses[text]:
                del self._made[text]
        return rows
