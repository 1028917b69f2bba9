"""The four modes answer as `generate` does, and say what they cost."""

import pytest

from gistkit.baselines import CACHED, FULL, GIST, MODES, NONE, answer, compare, prepare
from gistkit.errors import OptionError
from gistkit.model import GistModel
from gistkit.testing import tiny_gist_model

INSTRUCTION = "Translate into French."
INPUTS = ["cat", "a large dog"]


@pytest.fixture(scope="module")
def model() -> GistModel:
    return tiny_gist_model("llama")


def test_outputs_are_those_of_generate(model: GistModel) -> None:
    found = {one.mode: one for one in compare(model, INSTRUCTION, INPUTS, max_new_tokens=6)}
    assert tuple(found) == MODES
    expected = model.generate(INPUTS, instructions=INSTRUCTION, max_new_tokens=6)
    assert found[FULL].outputs == found[CACHED].outputs == tuple(expected)
    gist = model.compress(INSTRUCTION)
    assert found[GIST].outputs == tuple(model.generate(INPUTS, gist, max_new_tokens=6))
    assert found[NONE].outputs == tuple(model.generate(INPUTS, max_new_tokens=6))


def test_what_is_kept_and_read(model: GistModel) -> None:
    found = {one.mode: one for one in compare(model, INSTRUCTION, "cat", rounds=1)}
    prompt = len(model.encoder.instruction(INSTRUCTION, model.config.default_k))
    read = len(model.encoder.input("cat"))
    kept = {mode: one.kept_tokens for mode, one in found.items()}
    assert kept == {GIST: model.config.default_k, CACHED: prompt, FULL: 0, NONE: 0}
    assert {mode: one.read_tokens for mode, one in found.items()} == {
        GIST: read, CACHED: read, FULL: prompt + read, NONE: read,
    }  # fmt: skip
    assert found[CACHED].prepare_seconds > found[FULL].prepare_seconds == 0


def test_an_encoder_decoder_has_no_cached_prompt() -> None:
    gist, cached, full, none = compare(tiny_gist_model("t5"), INSTRUCTION, "cat", rounds=1)
    assert "cannot cache a full prompt" in cached.missing and not cached.outputs
    assert gist.missing == full.missing == none.missing == ""


def test_an_untrained_number_is_of_the_gist_alone(model: GistModel) -> None:
    with pytest.raises(OptionError, match="trained for"):
        prepare(model, GIST, INSTRUCTION, num_gist_tokens=3)
    gist = prepare(model, GIST, INSTRUCTION, num_gist_tokens=3, allow_untrained=True)
    cached = prepare(model, CACHED, INSTRUCTION, num_gist_tokens=3)
    assert gist is not None and gist.num_tokens == 3
    default = model.cache_prompt(INSTRUCTION)
    assert cached is not None and cached.num_tokens == default.num_tokens
    whole = answer(model, FULL, INSTRUCTION, "cat", None, num_gist_tokens=3, max_new_tokens=4)
    assert whole == model.generate("cat", default, max_new_tokens=4)
