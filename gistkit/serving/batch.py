"""Answers that are decoded together: rows of the model, and whose each of them is.

    begin ──> [draw ──> deltas ──> advance] ──> ... until nobody is left

Shapes: B rows.
"""

from collections.abc import Callable, Sequence
from typing import Self

import torch

from gistkit.gist import Gist
from gistkit.model import GistModel
from gistkit.models.kv_batch import KVBatch
from gistkit.serving.engine import Delta
from gistkit.serving.requests import Answer, Request
from gistkit.serving.sampling import draw, likeliest


class Batch:
    """B answers and their rows.

    Attributes:
        answers: B.
        columns: tokens of the longest row at the most; its memory is reserved for every row.
    """

    def __init__(self, rows: KVBatch, answers: list[Answer], *, trims: bool) -> None:
        self._rows, self.answers, self._trims = rows, answers, trims
        self.columns = max(answer.request.columns for answer in answers)
        self._drawn: list[int] = []

    @classmethod
    def begin(
        cls, model: GistModel, requests: Sequence[Request], answer: Callable[[Request, int], Answer]
    ) -> Self:
        """Read each prompt once, all in one pass: all with a gist, or all without.

        Args:
            answer: makes the answer of a request with a number.
        """
        ids, padding = model.pad([one.ids for one in requests])
        gists = [one.gist.to(device=model.device) for one in requests if one.gist is not None]
        prefix = Gist.stack(gists) if gists else None
        rows = model.adapter.begin(ids, padding, prefix, gist_id=model.gist_id)
        owners = [row for row, one in enumerate(requests) for _ in range(one.sampling.n)]
        if len(owners) > len(requests):
            rows.repeat(owners)
        answers = [answer(one, index) for one in requests for index in range(one.sampling.n)]
        return cls(rows, answers, trims=model.adapter.rows_join)

    def __len__(self) -> int:
        """B."""
        return len(self.answers)

    @property
    def cells(self) -> int:
        """Tokens that there must be memory for: B x columns."""
        return len(self) * self.columns

    def join(self, other: Self) -> None:
        """Take over another batch (where the family's rows join)."""
        self._rows.join(other._rows)
        self.answers += other.answers
        self.columns = max(self.columns, other.columns)

    def draw(self) -> list[tuple[Request, Delta]]:
        """One more token for every answer; returns what there is to say."""
        logits = self._rows.logits
        how = [one.request.sampling for one in self.answers]
        tokens = draw(logits, how, [one.chance for one in self.answers])
        asked = [row for row, one in enumerate(how) if one.logprobs is not None]
        likely: dict[int, list[tuple[int, float]]] = {}
        if asked:
            most = max(how[row].logprobs or 0 for row in asked)
            found = likeliest(logits[asked], [tokens[row] for row in asked], most)
            for row, best in zip(asked, found, strict=True):
                likely[row] = best[: 1 + (how[row].logprobs or 0)]
        self._drawn = tokens
        deltas = []
        for row, (answer, token) in enumerate(zip(self.answers, tokens, strict=True)):
            delta = answer.take(token, likely.get(row, ()))
            if delta is not None:
                deltas.append((answer.request, delta))
        return deltas

    def advance(self) -> None:
        """Forget answers that are done, and predict what follows the tokens drawn."""
        self.drop([row for row, answer in enumerate(self.answers) if answer.done])
        if self.answers:
            self._rows.step(torch.tensor(self._drawn, device=self._rows.logits.device))
        self._drawn = []

    def drop(self, rows: Sequence[int]) -> None:
        """Forget these answers."""
        if not rows:
            return
        order = self._rows.drop(rows)
        self.answers = [self.answers[row] for row in order]
        self._drawn = [self._drawn[row] for row in order] if self._drawn else []
        if self.answers and self._trims:
            self.columns = max(answer.request.columns for answer in self.answers)
