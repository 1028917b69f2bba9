"""The next token of each row, and its log-probabilities: every row in its own way, all at once.

A row's chance is a number in [0, 1) from the row's own generator; which token it means depends on
the row's logits alone. So the same seed gives the same answer, whatever else is in the batch.

Shapes: B rows, V vocabulary, R rows that are drawn (not greedy).
"""

from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from gistkit.serving.engine import Sampling

COLDEST = 1e-4  # temperatures below are taken for this one: logits divided by less overflow
MOST = 1 - 2**-22  # a chance that float32 does not round up to 1


def draw(logits: Tensor, how: Sequence[Sampling], chances: Sequence[Random]) -> list[int]:
    """One token for each row of `logits` [B, V].

    Args:
        how: B samplings.
        chances: B generators; a greedy row's is left alone.
    """
    tokens = logits.argmax(-1)
    drawn = [row for row, one in enumerate(how) if one.temperature > 0]
    if drawn:
        rows = torch.tensor(drawn, device=logits.device)
        chance = logits.new_tensor(
            [min(chances[row].random(), MOST) for row in drawn], dtype=torch.float32
        )
        warmth = chance.new_tensor([max(how[row].temperature, COLDEST) for row in drawn])
        kept = chance.new_tensor([how[row].top_p for row in drawn])
        tokens[rows] = _drawn(logits[rows].float() / warmth[:, None], kept, chance)
    return tokens.tolist()


def _drawn(logits: Tensor, kept: Tensor, chance: Tensor) -> Tensor:
    """Tokens [R] where the chances [R] fall among the likeliest tokens of `kept` [R] together."""
    probabilities = logits.softmax(-1)
    if bool((kept < 1).any()):
        ordered, ids = probabilities.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        before[:, 0] = -1  # the likeliest stays
        out = torch.zeros_like(before, dtype=torch.bool)
        out.scatter_(-1, ids, before >= kept[:, None])
        probabilities = probabilities.masked_fill(out, 0)
    # in the order of ids: that of nearly equal probabilities differs with the batch
    up_to = probabilities.cumsum(-1)
    return torch.searchsorted(up_to, chance[:, None] * up_to[:, -1:], right=True)[:, 0]


def likeliest(logits: Tensor, tokens: Sequence[int], most: int) -> list[list[tuple[int, float]]]:
    """For each row of `logits` [B, V]: its token, then the `most` likeliest, as ids and nats."""
    logs = logits.float().log_softmax(-1)
    own = logs.gather(-1, torch.tensor(tokens, device=logits.device)[:, None])
    best = logs.topk(min(most, logs.shape[-1]), dim=-1)
    ids = best.indices.tolist()
    values = torch.cat([own, best.values], dim=-1).tolist()
    return [
        list(zip([token, *row], numbers, strict=True))
        for token, row, numbers in zip(tokens, ids, values, strict=True)
    ]
