"""Who of those waiting begins now: in turn, as long as there is memory for whole answers.

Every row of a batch is as wide as its widest, so what a batch takes is rows x columns; it is
reserved before a request begins, and an answer never stops half way for want of memory.

    limit 100 cells     running  2 rows x 20 columns = 40 cells
    waiting  1 x 30     3 rows x 30 = 90: begins
    waiting  1 x 10     4 rows x 30 = 120: waits, and all behind it, too

Nobody is overtaken for want of memory, so that long prompts do not wait forever. What rows keep
besides to grow into (a quarter more rows, 64 columns) is not counted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gistkit.serving.batch import Batch
from gistkit.serving.requests import Request

WAVES = 4
"""Batches at once where rows cannot join: the fewer, the more begin together in the next one."""

PREFILL = 2048
"""Tokens read between two steps, padding included: those who are being answered wait meanwhile."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What there is room for.

    Attributes:
        rows: answers at once.
        cells: tokens in memory at once.
        join: whether rows join others that run already.
        differ: whether prompts of different lengths may begin together.
    """

    rows: int
    cells: int
    join: bool
    differ: bool

    def fits_alone(self, request: Request) -> bool:
        """Whether there is memory for a request when nothing else runs."""
        return request.sampling.n * request.columns <= self.cells

    def admit(self, waiting: Iterable[Request], running: Sequence[Batch]) -> list[list[Request]]:
        """Groups of those `waiting` (in turn) that begin now, each to be read in one pass."""
        groups: dict[tuple[int, ...], list[Request]] = {}
        rows, tokens = sum(map(len, running)), 0
        for request in waiting:
            group = self._group(request)
            if not self.join and group not in groups and len(groups) + len(running) >= WAVES:
                continue  # a wave of its own, when one has ended
            others = groups.get(group, [])
            tokens += _padded([*others, request]) - _padded(others)
            rows += request.sampling.n
            if rows > self.rows or (groups and tokens > PREFILL):
                break
            if self._cells(running, {**groups, group: [*others, request]}) > self.cells:
                break
            groups[group] = [*others, request]
        return list(groups.values())

    def _group(self, request: Request) -> tuple[int, ...]:
        """Requests of one group can be read in one pass."""
        if self.differ:
            return (min(request.kept, 1),)
        return request.kept, len(request.ids)

    def _cells(self, running: Sequence[Batch], groups: dict[tuple[int, ...], list[Request]]) -> int:
        """Tokens in memory at the most, once these groups have begun."""
        new = [
            (sum(one.sampling.n for one in group), max(one.columns for one in group))
            for group in groups.values()
        ]
        shapes = [(len(batch), batch.columns) for batch in running] + new
        if self.join:  # all become one batch
            return sum(rows for rows, _ in shapes) * max(columns for _, columns in shapes)
        return sum(rows * columns for rows, columns in shapes)


def _padded(group: Sequence[Request]) -> int:
    """Tokens of the pass that reads a group, padding included."""
    return len(group) * max((len(one.ids) for one in group), default=0)
