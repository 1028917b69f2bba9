"""Fingerprints: equal for equal weights, different as soon as training touched a tensor."""

import copy

import pytest
import torch
from torch import nn

from gistkit.model import SAMPLES, fingerprint, version
from gistkit.testing import tiny_model


def test_equal_weights_have_one_fingerprint() -> None:
    model = tiny_model("llama")
    assert fingerprint(copy.deepcopy(model)) == fingerprint(model)
    assert len(fingerprint(model)) == 64


def test_an_optimizer_step_changes_it() -> None:
    model = tiny_model("llama")
    before, seen = fingerprint(model), version(model)
    loss = model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert fingerprint(model) != before
    assert version(model) != seen


@pytest.mark.parametrize("change", ["value", "dtype", "name", "shape", "order"])
def test_what_it_notices(change: str) -> None:
    def layers() -> nn.ModuleDict:
        torch.manual_seed(0)
        return nn.ModuleDict({"a": nn.Linear(4, 6), "b": nn.Linear(4, 6)})

    model = layers()
    if change == "value":
        with torch.no_grad():
            model["a"].bias[0] += 1e-6
    elif change == "dtype":
        model = model.to(torch.bfloat16).to(torch.float16)
    elif change == "name":
        model = nn.ModuleDict({"a": model["a"], "c": model["b"]})
    elif change == "shape":
        model["a"].weight = nn.Parameter(model["a"].weight.detach().view(6, 4)[:, :4].reshape(4, 6))
    else:
        model = nn.ModuleDict({"a": model["b"], "b": model["a"]})
    assert fingerprint(model) != fingerprint(layers())


def test_large_tensors_are_sampled_evenly_to_the_ends() -> None:
    layer = nn.Linear(SAMPLES, 40, bias=False)
    before = fingerprint(layer)
    for place in ((0, 0), (-1, -1)):
        with torch.no_grad():
            layer.weight[place] += 1
        assert fingerprint(layer) != before
        before = fingerprint(layer)


def test_gradients_and_modes_do_not_matter() -> None:
    model = tiny_model("llama")
    before = fingerprint(model)
    model.requires_grad_(False).train()
    assert fingerprint(model) == before
