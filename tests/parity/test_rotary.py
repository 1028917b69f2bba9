"""Rotary variants: exact for those that do not depend on length, refused past it for the others."""

from typing import Any

import pytest

from gistkit.errors import PromptError, UnsupportedModelError
from gistkit.models.base import Adapter
from gistkit.models.families import adapter_class, adapter_for
from gistkit.testing import tiny_gist_model, tiny_model
from tests.parity.paths import TOLERANCE, compress, draw, from_gist, gap, generate, masked, stepwise

ORIGINAL = 64
THETA = {"rope_theta": 10000.0}
FIXED: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": ORIGINAL,
    },
}


def rotated(rope: dict[str, Any], **changes: Any) -> Adapter:
    return adapter_for(tiny_model("llama", rope_parameters={**THETA, **rope}, **changes))


def dynamic() -> Adapter:
    return rotated({"rope_type": "dynamic", "factor": 4.0}, max_position_embeddings=ORIGINAL)


def longrope() -> Adapter:
    pairs = 64 // 4 // 2
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0 + i / 10 for i in range(pairs)],
        "long_factor": [2.0 + i for i in range(pairs)],
        "factor": 8.0,
        "original_max_position_embeddings": ORIGINAL,
    }
    return adapter_for(
        tiny_model(
            "phi3",
            rope_parameters={**THETA, **rope},
            original_max_position_embeddings=ORIGINAL,
            max_position_embeddings=512,
        )
    )


@pytest.mark.parametrize("kind", FIXED)
def test_fixed_variants_are_exact_at_any_length(kind: str) -> None:
    model = rotated(FIXED[kind])
    rows = draw(50, [(200, 2, 60), (3, 2, 5), (40, 10, 30)])
    assert gap(from_gist(model, rows), masked(model, rows)) < TOLERANCE
    assert generate(model, rows, compress(model, rows), new=4) == stepwise(model, rows, new=4)


@pytest.mark.parametrize("kind", FIXED)
def test_the_variant_is_there(kind: str) -> None:
    rows = draw(51, [(200, 2, 60)])
    plain = rotated({"rope_type": "default"})
    assert gap(masked(rotated(FIXED[kind]), rows), masked(plain, rows)) > 1e-2


@pytest.mark.parametrize("make", [dynamic, longrope])
def test_length_dependent_variants_are_exact_below_their_length(make: Any) -> None:
    model = make()
    rows = draw(52, [(20, 2, 30), (3, 2, 5), (40, 5, 10)])
    assert model.max_positions == ORIGINAL
    assert gap(from_gist(model, rows), masked(model, rows)) < TOLERANCE
    assert generate(model, rows, compress(model, rows), new=4) == stepwise(model, rows, new=4)


@pytest.mark.parametrize("make", [dynamic, longrope])
def test_length_dependent_variants_are_refused_past_it(make: Any) -> None:
    model = make()
    rows = draw(53, [(20, 2, 58)])
    gist = compress(model, rows)
    generate(model, rows, gist, new=4)  # 64 tokens: the last that fit
    with pytest.raises(PromptError, match=r"65 tokens .* more than the 64"):
        generate(model, rows, gist, new=5)


def test_an_instruction_past_the_length_is_refused() -> None:
    model = tiny_gist_model(
        rope_parameters={**THETA, "rope_type": "dynamic", "factor": 4.0},
        max_position_embeddings=ORIGINAL,
    )
    with pytest.raises(PromptError, match="more than the 64 this model can place"):
        model.compress("a" * 60)


def test_an_unknown_variant_is_refused() -> None:
    config = tiny_model("llama").config
    config.rope_parameters["rope_type"] = "proportional"
    with pytest.raises(UnsupportedModelError, match="'proportional' is not proved"):
        adapter_class(config)
