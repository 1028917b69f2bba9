"""What fidelity promises: 1 for a gist that predicts as the full prompt, less for others."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gistkit.errors import GistFileError, GistMismatchError, OptionError, PromptError
from gistkit.fidelity import (
    PARTS,
    Fidelity,
    fidelity_of,
    measure_fidelity,
    with_fidelity,
)
from gistkit.fidelity.measure import _spelling
from gistkit.fidelity.reading import Prompt, read_along
from gistkit.gist import Gist
from gistkit.model import GistModel
from gistkit.testing import tiny_gist_model

INSTRUCTION = "Everything costs nine coins. You are Nora."
INPUTS = ["Tom wants a cake", "A boat for Ada please", "Lena asks for a hat"]


@pytest.fixture(scope="module")
def model() -> GistModel:
    return GistModel.from_pretrained("toy")


def blurred(gist: Gist, noise: float) -> Gist:
    generator = torch.Generator().manual_seed(0)
    return replace(
        gist,
        tensors={
            name: t + noise * t.std() * torch.randn(t.shape, generator=generator)
            for name, t in gist.tensors.items()
        },
    )


def test_a_good_gist_scores_high_and_a_damaged_one_low(model: GistModel) -> None:
    gist = model.compress(INSTRUCTION)
    good = measure_fidelity(model, INSTRUCTION, gist, probes=INPUTS)
    bad = measure_fidelity(model, INSTRUCTION, blurred(gist, 4.0), probes=INPUTS)
    assert good.score > 0.99 > 0.8 > bad.score
    assert good.kl < bad.kl
    for part in ("numbers", "names"):
        whole, lost = good.parts[part], bad.parts[part]
        assert whole is not None and lost is not None and whole > 0.99 > lost
    assert (good.probes, good.drawn) == (3, False)


def test_a_gist_of_another_instruction_loses_the_name_and_the_number(model: GistModel) -> None:
    own = model.compress(INSTRUCTION)
    other = model.compress("Everything costs two coins. You are Hugo.")
    forged = replace(other, provenance=own.provenance)
    found = measure_fidelity(model, INSTRUCTION, forged, probes=INPUTS)
    assert found.parts["numbers"] == pytest.approx(0, abs=0.2)
    assert found.parts["names"] == pytest.approx(0, abs=0.2)
    assert found.score < 0.8


def test_the_leader_answers_as_generate_does_and_readers_as_alone(model: GistModel) -> None:
    gist = model.compress(INSTRUCTION)
    k = gist.num_tokens
    leaders = [Prompt(model.encoder.prompt(INSTRUCTION, text, k)) for text in INPUTS]
    readers = {"gist": [Prompt(model.encoder.input(text), gist) for text in INPUTS]}
    readings = read_along(model, leaders, readers, max_new_tokens=40)
    expected = model.generate(INPUTS, instructions=INSTRUCTION, max_new_tokens=40)
    answers = [model.tokenizer.decode(r.tokens, skip_special_tokens=True) for r in readings]
    assert [str(answer).strip() for answer in answers] == expected
    for text, together in zip(INPUTS, readings, strict=True):
        (alone,) = read_along(
            model,
            [Prompt(model.encoder.prompt(INSTRUCTION, text, k))],
            {"gist": [Prompt(model.encoder.input(text), gist)]},
            max_new_tokens=40,
        )
        assert alone.tokens == together.tokens
        torch.testing.assert_close(alone.others, together.others, atol=1e-4, rtol=0)
        torch.testing.assert_close(alone.divergence, together.divergence, atol=1e-4, rtol=0)


def test_numbers_are_the_probabilities_of_the_full_pass(model: GistModel) -> None:
    """Against one masked forward pass over instruction, gist, input and answer."""
    gist, text = model.compress(INSTRUCTION), INPUTS[0]
    k = gist.num_tokens
    prompt = model.encoder.prompt(INSTRUCTION, text, k)
    readers = {
        "gist": [Prompt(model.encoder.input(text), gist)],
        "none": [Prompt(model.encoder.input(text))],
    }
    (reading,) = read_along(model, [Prompt(prompt)], readers, max_new_tokens=40)
    ids = torch.tensor([prompt + reading.tokens])
    seen = {}
    for condition in ("pos_control", "gist", "neg_control"):
        with torch.no_grad():
            logits = model.adapter.forward(
                ids, torch.ones_like(ids), gist_id=model.gist_id, condition=condition
            ).logits
        seen[condition] = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    column = torch.tensor(reading.tokens)[:, None]
    full, short = seen["pos_control"], seen["gist"]
    torch.testing.assert_close(reading.own, full.gather(1, column)[:, 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(
        reading.others["gist"], short.gather(1, column)[:, 0], atol=1e-3, rtol=0
    )
    kl = (full.exp() * (full - short)).sum(-1)
    torch.testing.assert_close(reading.divergence["gist"], kl, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "mistral", "t5"])
def test_every_kind_of_family(family: str) -> None:
    changes = {"sliding_window": 40} if family == "mistral" else {}
    model = tiny_gist_model(family, **changes)
    instruction = "Do not say 9 to Nora."
    gist = model.compress(instruction)
    for probes in (["a", "bcd", "efg"], None):
        found = measure_fidelity(
            model, instruction, gist, probes=probes, num_probes=3, max_new_tokens=6
        )
        assert 0 <= found.score <= 1 and found.parts.keys() == set(PARTS)
        if family == "llama":
            assert found.parts["negations"] is not None
        again = measure_fidelity(
            model, instruction, gist, probes=probes, num_probes=3, max_new_tokens=6
        )
        assert found == again


def test_drawn_probes_follow_the_seed_and_leave_the_callers_random_state(model: GistModel) -> None:
    gist = model.compress(INSTRUCTION)
    before = torch.random.get_rng_state()
    found = [measure_fidelity(model, INSTRUCTION, gist, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] and found[0].kl != found[2].kl and found[0].drawn
    assert torch.equal(before, torch.random.get_rng_state())


def test_it_is_kept_in_the_gists_file(model: GistModel, tmp_path: Path) -> None:
    gist = model.compress(INSTRUCTION)
    assert fidelity_of(gist) is None
    found = measure_fidelity(model, INSTRUCTION, gist, probes=INPUTS)
    with_fidelity(gist, found).save(tmp_path / "a.gist")
    loaded = Gist.load(tmp_path / "a.gist")
    assert fidelity_of(loaded) == found
    assert fidelity_of(Gist.stack([gist, loaded])[1]) == found


def test_json_of_something_else_is_refused() -> None:
    with pytest.raises(GistFileError, match="cannot be read"):
        Fidelity.from_json({"schema_version": 2, "score": 1.0})


@pytest.mark.parametrize("score", [1.5, "1", float("nan")])
def test_a_score_that_is_none_is_refused(model: GistModel, score: object) -> None:
    gist = model.compress(INSTRUCTION)
    found = measure_fidelity(model, INSTRUCTION, gist, probes=INPUTS[:1])
    with pytest.raises(GistFileError):
        Fidelity.from_json({**found.to_json(), "score": score})


def test_spelled_tokens_are_those_of_the_words(model: GistModel) -> None:
    text = "Tom, one cake, nine coins, Nora"
    tokens = model.tokenizer(" " + text, add_special_tokens=False)["input_ids"]
    marked = _spelling(model, tokens, ("nine", "Nora"))
    spelled = [model.tokenizer.decode([t]) for t, m in zip(tokens, marked, strict=True) if m]
    assert "".join(spelled).split() == ["nine", "Nora"] or "".join(spelled) == "nineNora"


def test_mistakes_are_named(model: GistModel) -> None:
    gist = model.compress(INSTRUCTION)
    with pytest.raises(GistMismatchError, match="another instruction"):
        measure_fidelity(model, "Something else.", gist)
    with pytest.raises(GistMismatchError, match="one at a time"):
        measure_fidelity(model, INSTRUCTION, Gist.stack([gist, gist]))
    with pytest.raises(OptionError):
        measure_fidelity(model, INSTRUCTION, gist, probes=[])
    with pytest.raises(PromptError):
        measure_fidelity(model, INSTRUCTION, gist, probes=["hat " * 600])


def test_a_file_whose_fidelity_is_no_object_is_damaged(model: GistModel, tmp_path: Path) -> None:
    gist = model.compress(INSTRUCTION)
    (row,) = gist.provenance
    wrong = replace(row, fidelity="high")  # type: ignore[arg-type]
    replace(gist, provenance=(wrong,)).save(tmp_path / "a.gist")
    with pytest.raises(GistFileError, match="damaged"):
        Gist.load(tmp_path / "a.gist")
