"""Extraction: the most telling sentences of an instruction, in their order, within the budget.

TF-IDF    sentences are ranked by their cosine similarity to the whole instruction
LexRank   by PageRank on the graph of sentences, joined by their similarity (Erkan & Radev 2004)

Words are weighted by TF-IDF over all instructions of the data. Sentences are taken in the order of
their ranks while they fit; of the first that does not fit, the heaviest words are. A sentence ends
at `.`, `!`, `?`, and, since instructions are short, at `;` and `,` too.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy

from gistkit.compare.method import Method, cached, fits, instruction_ids, joined
from gistkit.errors import MissingExtraError
from gistkit.gist import Prefix
from gistkit.model import GistModel

WORD = r"\w+"
_PART = re.compile(r"[^.!?;,]+[.!?;,]*\s*")
DAMPING = 0.85
ROUNDS = 100


@dataclass(frozen=True)
class Extractive(Method):
    """The cache of an extract; MissingExtraError without scikit-learn.

    Attributes:
        instructions: all of the data, which tell rare words from common ones.
        lexrank: rank sentences by LexRank instead of TF-IDF.
    """

    instructions: tuple[str, ...]
    lexrank: bool = False

    @property
    def name(self) -> str:
        return "LexRank" if self.lexrank else "TF-IDF"

    def prepare(self, model: GistModel, instruction: str, budget: int) -> Prefix | None:
        return cached(model, self.extract(model, instruction, budget))

    def extract(self, model: GistModel, instruction: str, budget: int) -> str:
        """At most `budget` tokens of the instruction; all of it where it has no more."""
        if len(instruction_ids(model, instruction)) <= budget:
            return instruction
        parts = _PART.findall(instruction) or [instruction]
        chosen: dict[int, str] = {}
        for number in self.ranked(parts):
            if fits(model, {**chosen, number: parts[number]}, budget):
                chosen[number] = parts[number]
            else:
                chosen[number] = self._heaviest(model, parts[number], chosen, number, budget)
                break
        return joined(chosen)

    def ranked(self, parts: Sequence[str]) -> list[int]:
        """Numbers of the parts, best first; equal ones in their order."""
        rows = self.vectorizer.transform([*parts, " ".join(parts)]).toarray()
        similar = rows @ rows.T  # rows are of length 1: cosines
        scores = pagerank(similar[:-1, :-1]) if self.lexrank else similar[-1, :-1]
        return sorted(range(len(parts)), key=lambda n: -round(float(scores[n]), 9))

    @cached_property
    def vectorizer(self) -> Any:
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError as error:
            raise MissingExtraError("scikit-learn", "compare") from error
        return TfidfVectorizer(token_pattern=WORD).fit(self.instructions)

    def _heaviest(
        self, model: GistModel, part: str, chosen: dict[int, str], number: int, budget: int
    ) -> str:
        """The heaviest words of `part` that fit beside the chosen parts, in their order."""
        words = part.split()
        index, rarity = self.vectorizer.vocabulary_, self.vectorizer.idf_

        def weight(word: str) -> float:
            known = [index[w] for w in re.findall(WORD, word.lower()) if w in index]
            return max((float(rarity[i]) for i in known), default=0.0)

        heaviest: dict[int, str] = {}
        for n in sorted(range(len(words)), key=lambda n: -weight(words[n])):
            more = {**heaviest, n: words[n]}
            if fits(model, {**chosen, number: joined(more)}, budget):
                heaviest = more
        return joined(heaviest)


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
