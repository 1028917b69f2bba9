"""Extraction: the sentences of an instruction that say most, in their order, within the budget.

TF-IDF    a sentence counts by its cosine similarity to the whole instruction
LexRank   by PageRank on the graph of sentences, joined by their similarity (Erkan & Radev 2004)

Words are weighted by TF-IDF over all instructions of the data. Sentences are taken from the best
one down while they fit; of the first that does not fit its heaviest words are. A sentence ends at
`.`, `!`, `?`, and, since instructions are short, at `;` and `,` too.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy

from gistkit.compare.method import cached, instruction_ids
from gistkit.errors import MissingExtraError
from gistkit.gist import Prefix
from gistkit.model import GistModel

WORD = r"\w+"
_PART = re.compile(r"[^.!?;,]+[.!?;,]*\s*")
DAMPING = 0.85
ROUNDS = 100


@dataclass(frozen=True)
class Extractive:
    """See `Method`.

    Attributes:
        instructions: all of the data, which tell rare words from common ones.
        lexrank: rank sentences by LexRank instead of TF-IDF.
    """

    instructions: tuple[str, ...]
    lexrank: bool = False
    budgeted: bool = True
    most_rows: int | None = None

    @property
    def name(self) -> str:
        """See `Method`."""
        return "LexRank" if self.lexrank else "TF-IDF"

    def prepare(self, model: GistModel, instruction: str, budget: int) -> Prefix | None:
        """The cache of the extract (raises MissingExtraError without scikit-learn)."""
        return cached(model, self.extract(model, instruction, budget))

    def extract(self, model: GistModel, instruction: str, budget: int) -> str:
        """At most `budget` tokens of the instruction; all of it where it has no more."""
        if len(instruction_ids(model, instruction)) <= budget:
            return instruction
        parts = _PART.findall(instruction) or [instruction]
        kept: dict[int, str] = {}
        for place in self.ranked(parts):
            if _fits(model, {**kept, place: parts[place]}, budget):
                kept[place] = parts[place]
            else:
                kept[place] = self._heaviest(model, parts[place], kept, place, budget)
                break
        return _joined(kept)

    def ranked(self, parts: Sequence[str]) -> list[int]:
        """Numbers of the parts, best first; equal ones in their order."""
        rows = self.vectorizer.transform([*parts, " ".join(parts)]).toarray()
        similar = rows @ rows.T  # rows are of length 1: cosines
        scores = pagerank(similar[:-1, :-1]) if self.lexrank else similar[-1, :-1]
        return sorted(range(len(parts)), key=lambda place: -round(float(scores[place]), 9))

    @cached_property
    def vectorizer(self) -> Any:
        """TF-IDF of words, fitted on all instructions."""
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError as error:
            raise MissingExtraError("scikit-learn", "compare") from error
        return TfidfVectorizer(token_pattern=WORD).fit(self.instructions)

    def _heaviest(
        self, model: GistModel, part: str, kept: dict[int, str], place: int, budget: int
    ) -> str:
        """The heaviest words of `part` that fit beside what is kept, in their order."""
        words = part.split()
        index, rarity = self.vectorizer.vocabulary_, self.vectorizer.idf_

        def weight(word: str) -> float:
            known = [index[w] for w in re.findall(WORD, word.lower()) if w in index]
            return max((float(rarity[place]) for place in known), default=0.0)

        chosen: dict[int, str] = {}
        for number in sorted(range(len(words)), key=lambda n: -weight(words[n])):
            more = {**chosen, number: words[number]}
            if _fits(model, {**kept, place: _joined(more)}, budget):
                chosen = more
        return _joined(chosen)


def pagerank(similar: Any) -> Any:
    """Ranks [n] of the nodes of a graph with weights [n, n], by power iteration."""
    n = len(similar)
    totals = similar.sum(axis=1, keepdims=True)
    # a sentence without any known word is like all of them
    steps = numpy.divide(similar, totals, out=numpy.full_like(similar, 1 / n), where=totals > 0)
    ranks = numpy.full(n, 1 / n)
    for _ in range(ROUNDS):
        ranks = (1 - DAMPING) / n + DAMPING * ranks @ steps
    return ranks


def _joined(kept: dict[int, str]) -> str:
    return " ".join(kept[place].strip() for place in sorted(kept) if kept[place].strip())


def _fits(model: GistModel, kept: dict[int, str], budget: int) -> bool:
    return len(instruction_ids(model, _joined(kept))) <= budget
