"""Leaving out logits that no label needs changes neither the loss nor a gradient."""

import pytest
import torch

from gisting.models.families import FAMILIES
from gisting.testing import tiny_gist_model


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_loss_is_the_same(family: str) -> None:
    model = tiny_gist_model(family)
    ids = torch.tensor([[5, 6, 7, model.gist_id, 8, 9, 10], [0, 5, 6, model.gist_id, 8, 11, 12]])
    padding = (ids != 0).long()
    labels = torch.where(torch.arange(7) >= 5, ids, -100)
    found = []
    for loss_only in (False, True):
        model.hf_model.zero_grad()
        output = model.adapter.forward(
            ids, padding, gist_id=model.gist_id, condition="gist", labels=labels,
            loss_only=loss_only,
        )  # fmt: skip
        output["loss"].backward()
        weight = next(model.hf_model.parameters())
        found.append((output["loss"].item(), weight.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-5)
