"""Sliding windows: exact where the window does not bind, and where it does.

A window counts cache slots, so padding between gist and input would push the gist out of sight too
early. `generate` reads rows of one length together; `read` insists on one length.
"""

from functools import cache
from typing import Any

import pytest

from gistkit.errors import OptionError, PromptError
from gistkit.gist import Gist
from gistkit.models.base import Adapter
from gistkit.models.families import adapter_for
from gistkit.testing import tiny_model
from tests.parity.paths import (
    TOLERANCE,
    as_prefix,
    cache_prompt,
    compress,
    draw,
    from_gist,
    gap,
    generate,
    masked,
    pad,
    read,
    stepwise,
)

WINDOW = 16
ALTERNATING: dict[str, Any] = {"use_sliding_window": True, "max_window_layers": 1}
WINDOWED: dict[str, dict[str, Any]] = {
    "gemma2": {},
    "gemma3_text": {},
    "mistral": {},
    "mixtral": {},
    "phi3": {},
    "qwen2": ALTERNATING,
    "qwen3": ALTERNATING,
    "qwen3_moe": {"use_sliding_window": True},
    "smollm3": {
        "use_sliding_window": True,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "starcoder2": {},
}

every_windowed = pytest.mark.parametrize("family", WINDOWED)
some_windowed = pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text", "qwen2"])


@cache
def windowed(family: str) -> Adapter:
    return adapter_for(tiny_model(family, sliding_window=WINDOW, **WINDOWED[family]))


@every_windowed
def test_the_window_is_there(family: str) -> None:
    rows = draw(30, [(40, 2, 20)])
    unbounded = adapter_for(tiny_model(family, **WINDOWED[family], sliding_window=4096))
    assert gap(masked(windowed(family), rows), masked(unbounded, rows)) > 1e-2


@some_windowed
def test_instructions_longer_than_the_window(family: str) -> None:
    rows = draw(31, [(40, 2, 5), (3, 2, 12), (100, 2, 1)])
    assert gap(from_gist(windowed(family), rows), masked(windowed(family), rows)) < TOLERANCE


@some_windowed
def test_inputs_longer_than_the_window(family: str) -> None:
    rows = draw(32, [(40, 10, 40), (3, 10, 40)])
    assert gap(from_gist(windowed(family), rows), masked(windowed(family), rows)) < TOLERANCE


@every_windowed
def test_inputs_and_instructions_longer_than_the_window_and_mixed_k(family: str) -> None:
    rows = draw(33, [(40, 1, 30), (3, 10, 30), (20, 5, 30)])
    assert gap(from_gist(windowed(family), rows), masked(windowed(family), rows)) < TOLERANCE


@some_windowed
def test_greedy_tokens_of_mixed_lengths_across_the_window(family: str) -> None:
    rows = draw(34, [(20, 2, 5), (3, 1, 30), (33, 5, 12), (9, 2, 5)])
    model = windowed(family)
    assert generate(model, rows, compress(model, rows), new=10) == stepwise(model, rows, new=10)


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_one_gist_for_mixed_lengths_across_the_window(family: str) -> None:
    first, *others = draw(35, [(20, 2, 5), (20, 2, 30), (20, 2, 9)])
    rows = [first, *(type(first)(first.instruction, 2, r.input, r.target) for r in others)]
    model = windowed(family)
    assert generate(model, rows, compress(model, [first]), new=6) == stepwise(model, rows, new=6)
    assert generate(model, rows, None, new=6) == stepwise(model, rows, 6, "neg_control")


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_a_cached_prompt_shorter_than_the_window(family: str) -> None:
    rows = draw(36, [(WINDOW - 3, 2, 20), (3, 2, 20)])
    cache = cache_prompt(windowed(family), rows)
    ours = read(windowed(family), rows, cache)
    assert gap(ours, masked(windowed(family), rows, "pos_control")) < TOLERANCE


def test_what_cannot_be_exact_is_refused() -> None:
    model = windowed("mistral")
    with pytest.raises(OptionError, match=r"16 gist tokens do not fit .* window of 16"):
        compress(model, draw(37, [(3, 16, 1)]))
    for length in (WINDOW - 2, 40):  # with its two gist tokens, the first just fills the window
        with pytest.raises(PromptError, match="does not fit the sliding window"):
            cache_prompt(model, draw(38, [(length, 2, 1)]))


def test_read_insists_on_one_length_where_the_window_binds() -> None:
    model = windowed("mistral")
    rows = draw(39, [(5, 2, 30), (5, 2, 3)])
    with pytest.raises(AssertionError, match="one length"):
        read(model, rows, compress(model, rows))


def test_padding_between_gist_and_input_would_have_been_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Why rows are grouped: without it the padding uses up the window."""
    model = windowed("mistral")
    rows = draw(40, [(20, 2, 30), (20, 2, 12)])
    monkeypatch.setattr(type(model), "_window_binds", lambda *_: False)
    assert gap(read(model, rows, compress(model, rows)), masked(model, rows)) > 1e-2


def test_gist_tokens_just_within_the_window() -> None:
    model = windowed("mistral")
    rows = draw(41, [(30, WINDOW - 1, 20)])
    ids, padding = pad([row.prompt for row in rows], "left")
    gist = as_prefix(Gist, model.compress(ids, padding, WINDOW - 1), [WINDOW - 1])
    assert gap(read(model, rows, gist), masked(model, rows)) < TOLERANCE
