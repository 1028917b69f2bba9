"""The theorem in bfloat16 and float16, within a bound that the precision itself sets.

Both paths round after every operation, but not in the same order: their matrices have other sizes.
A logit passes some 20 roundings a layer and two layers; independent errors grow as the root of
their number, here about 6, and the sharp random attention of the tiny models amplifies them up to
threefold. So: the root mean square of the difference is below 24 roundings of that of the logits.
Measured over three seeds: 1 to 5 for most families, at most 15 (T5, whose attention is not scaled).
A wrong mask is off by 60% of the logits and more; 24 roundings of bfloat16 are 19%.
"""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from gistkit.models.families import adapter_for
from gistkit.testing import tiny_model
from tests.parity.paths import FAMILY_NAMES, draw, from_gist, masked

ROUNDINGS = 24
SHAPES = [(100, 2, 20), (7, 5, 40), (33, 1, 3)]


def size(logits: Sequence[Tensor]) -> float:
    return torch.cat([one.float().flatten() for one in logits]).square().mean().sqrt().item()


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    return size([a.float() - b.float() for a, b in zip(ours, theirs, strict=True)])


CASES = [(name, torch.bfloat16) for name in FAMILY_NAMES]
CASES += [(name, torch.float16) for name in ("llama", "gemma2", "mixtral", "t5")]


@pytest.mark.parametrize(("family", "dtype"), CASES, ids=str)
def test_half_precision_differs_by_roundings_only(family: str, dtype: torch.dtype) -> None:
    rows = draw(70, SHAPES)
    model = adapter_for(tiny_model(family).to(dtype))
    expected = masked(model, rows)
    bound = ROUNDINGS * torch.finfo(dtype).eps * size(expected)
    assert difference(from_gist(model, rows), expected) < bound
    assert difference(masked(model, rows, "pos_control"), expected) > 2 * bound
