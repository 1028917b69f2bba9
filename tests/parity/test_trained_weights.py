"""The theorem on trained weights and through text: TinyStories, 260 thousand parameters, GQA."""

from pathlib import Path

import pytest
import torch

from gistkit import GistModel

INSTRUCTIONS = [
    "Once upon a time, there was a little girl named Lily.",
    "Tell a story about a dog.",
    "The big red ball was lost in the park. " * 4,
]
INPUTS = ["She wanted to play outside.", "", "He was sad, and then"]


@pytest.fixture(scope="module")
def model(shared: Path) -> GistModel:
    return GistModel.from_base(shared / "models/stories260K", num_gist_tokens=(1, 2, 5, 10))


@torch.no_grad()
def masked_logits(model: GistModel, k: int, condition: str) -> list[torch.Tensor]:
    pairs = list(zip(INSTRUCTIONS, INPUTS, strict=True))
    ids, padding = model.pad([model.encoder.prompt(i, x, k) for i, x in pairs])
    output = model.adapter.forward(ids, padding, gist_id=model.gist_id, condition=condition)
    return [
        one[-len(model.encoder.input(x)) :] for one, x in zip(output.logits, INPUTS, strict=True)
    ]


@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_logits(model: GistModel, k: int) -> None:
    gist = model.compress(INSTRUCTIONS, num_gist_tokens=k)
    ids, padding = model.pad([model.encoder.input(x) for x in INPUTS])
    with torch.no_grad():
        logits = model.adapter.read(ids, padding, gist, gist_id=model.gist_id).logits
    for ours, theirs, other in zip(
        logits,
        masked_logits(model, k, "gist"),
        masked_logits(model, k, "pos_control"),
        strict=True,
    ):
        ours = ours[-len(theirs) :]
        assert (ours - theirs).abs().max() < 1e-4
        assert (theirs - other).abs().max() > 1e-2


def test_greedy_text(model: GistModel) -> None:
    gist = model.compress(INSTRUCTIONS, num_gist_tokens=2)
    together = model.generate(INPUTS, gist, max_new_tokens=12)
    pairs = zip(INPUTS, gist, strict=True)
    assert together == [model.generate(x, one, max_new_tokens=12)[0] for x, one in pairs]
    full = model.generate(INPUTS, instructions=INSTRUCTIONS, max_new_tokens=12, num_gist_tokens=2)
    cache = model.cache_prompt(INSTRUCTIONS, num_gist_tokens=2)
    assert model.generate(INPUTS, cache, max_new_tokens=12) == full
    assert together != full


def test_greedy_tokens_are_those_of_masked_passes(model: GistModel) -> None:
    gist = model.compress(INSTRUCTIONS, num_gist_tokens=2)
    pairs = zip(INSTRUCTIONS, INPUTS, strict=True)
    ids, padding = model.pad([model.encoder.prompt(i, x, 2) for i, x in pairs])
    start = ids.shape[1]
    for _ in range(12):
        with torch.no_grad():
            step = model.adapter.forward(ids, padding, gist_id=model.gist_id, condition="gist")
        ids = torch.cat([ids, step.logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        padding = torch.nn.functional.pad(padding, (0, 1), value=1)
    expected = model.tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True)
    assert model.generate(INPUTS, gist, max_new_tokens=12) == [text.strip() for text in expected]
