"""The masked full pass itself, against masks written cell by cell and eager attention.

Independent of `gistkit.masks` and of the adapters: rows are computed one at a time, without
padding, from a 4-D additive mask that two loops fill.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from gistkit.models.families import adapter_for
from gistkit.testing import tiny_model
from tests.parity.paths import GIST, TOLERANCE, Row, adapter, draw, from_gist, gap, masked, read

SHAPES = [(9, 2, 5), (30, 5, 12), (1, 1, 1), (17, 10, 3)]
CONDITIONS = ["gist", "pos_control", "neg_control"]


def allowed(row: Row, condition: str, query: int, key: int) -> bool:
    """May `query` see `key`, by the definition of the published implementation?"""
    first = len(row.instruction)
    last = first + row.k - 1
    if condition == "pos_control":
        return True
    if query <= last:
        return key <= last
    return key >= first if condition == "gist" else key > last


def additive(row: Row, condition: str, *, causal: bool, window: int | None = None) -> Tensor:
    length = len(row.whole)
    mask = torch.full((1, 1, length, length), torch.finfo(torch.float32).min)
    for query in range(length):
        for key in range(length):
            too_late = causal and key > query
            too_far = window is not None and query - key >= window
            if allowed(row, condition, query, key) and not too_late and not too_far:
                mask[0, 0, query, key] = 0
    return mask


def decoder_oracle(model: Any, rows: list[Row], condition: str) -> list[Tensor]:
    logits = []
    for row in rows:
        with torch.no_grad():
            output = model(
                input_ids=torch.tensor([row.whole]),
                attention_mask=additive(row, condition, causal=True),
                position_ids=torch.arange(len(row.whole))[None],
            )
        logits.append(output.logits[0, -len(row.input) :])
    return logits


def encoder_decoder_oracle(model: Any, rows: list[Row], condition: str) -> list[Tensor]:
    logits = []
    for row in rows:
        seen = [allowed(row, condition, len(row.whole), key) for key in range(len(row.whole))]
        with torch.no_grad():
            encoded = model.get_encoder()(
                input_ids=torch.tensor([row.whole]),
                attention_mask=additive(row, condition, causal=False),
            )
            output = model(
                encoder_outputs=encoded,
                attention_mask=torch.tensor([seen]).long(),
                labels=torch.tensor([row.target]),
            )
        logits.append(output.logits[0])
    return logits


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2", "qwen3", "phi"])
def test_a_decoders_masked_pass_is_the_one_written_cell_by_cell(
    family: str, condition: str
) -> None:
    rows = draw(20, SHAPES)
    expected = decoder_oracle(tiny_model(family, attn_implementation="eager"), rows, condition)
    assert gap(masked(adapter(family), rows, condition), expected) < TOLERANCE


@pytest.mark.parametrize("condition", CONDITIONS)
def test_t5s_masked_pass_is_the_one_written_cell_by_cell(condition: str) -> None:
    rows = draw(21, SHAPES)
    expected = encoder_decoder_oracle(
        tiny_model("t5", attn_implementation="eager"), rows, condition
    )
    assert gap(masked(adapter("t5"), rows, condition), expected) < TOLERANCE


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_reading_from_the_gist_is_the_pass_written_cell_by_cell(family: str) -> None:
    rows = draw(22, SHAPES)
    oracle = encoder_decoder_oracle if family == "t5" else decoder_oracle
    model = tiny_model(family, attn_implementation="eager")
    assert gap(from_gist(adapter(family), rows), oracle(model, rows, "gist")) < TOLERANCE
    without = oracle(model, rows, "neg_control")
    assert gap(read(adapter(family), rows, None), without) < TOLERANCE


def test_a_sliding_window_is_kept_under_the_mask() -> None:
    rows = draw(23, [(9, 2, 20), (30, 3, 12)])
    model: Any = tiny_model("mistral", attn_implementation="eager", sliding_window=8)
    expected = []
    for row in rows:
        with torch.no_grad():
            output = model(
                input_ids=torch.tensor([row.whole]),
                attention_mask=additive(row, "gist", causal=True, window=8),
                position_ids=torch.arange(len(row.whole))[None],
            )
        expected.append(output.logits[0, -len(row.input) :])
    windowed = adapter_for(tiny_model("mistral", sliding_window=8))
    assert gap(masked(windowed, rows), expected) < TOLERANCE


def test_a_row_without_a_gist_is_ordinary_attention() -> None:
    rows = draw(24, [(9, 0, 5), (12, 0, 3)])
    assert all(GIST not in row.whole for row in rows)
    for family in ("llama", "t5"):
        plain = masked(adapter(family), rows, "pos_control")
        assert gap(masked(adapter(family), rows, "gist"), plain) < TOLERANCE
        assert gap(masked(adapter(family), rows, "neg_control"), plain) < TOLERANCE
