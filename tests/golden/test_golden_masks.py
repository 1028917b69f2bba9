"""Masks equal those of the published implementation, cell by cell."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from gistkit import masks
from gistkit.conditions import AFTER, BEFORE, CONDITIONS, GIST
from gistkit.errors import MaskError
from tests.golden.golden import FOLDER, assert_equal

pytestmark = pytest.mark.golden

FILE = FOLDER / "cases/mask_cases.json"
CASES = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else []
SEVERAL_SPANS = "RuntimeError"


def reference_masks(ids: Tensor, gist: int, condition: str, padding: Tensor | None) -> Tensor:
    """Our mask in the published form: not causal; with `padding`, its columns are masked."""
    function = masks.attends(masks.relabel(masks.segments(ids, gist), condition))
    if padding is not None:
        function = masks.both(function, masks.visible(padding))
    return masks.dense(function, *ids.shape, ids.shape[1])


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_masks(case: dict[str, Any]) -> None:
    ids, gist, out = torch.tensor(case["input_ids"]), case["gist_token"], case["out"]
    if SEVERAL_SPANS in out["get_gist_index"]:
        # The published masks took the first and last gist token for one span and showed what lies
        # between to both sides; its cache refused. We refuse in both places.
        with pytest.raises(MaskError, match="not one contiguous span"):
            masks.segments(ids, gist)
        return
    padding = (ids != case["pad_token"]).long()
    for condition in CONDITIONS:
        name = f"make_{condition}_mask"
        assert_equal(
            reference_masks(ids, gist, condition, None), torch.tensor(out[f"{name}/nopad"])
        )
        expected = torch.tensor(out[f"{name}/pad"])
        if condition == "pos_control":  # the published one never masks padding itself
            expected = expected * padding[:, None, None, :]
        assert_equal(reference_masks(ids, gist, condition, padding), expected)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_spans(case: dict[str, Any]) -> None:
    ids, gist, out = torch.tensor(case["input_ids"]), case["gist_token"], case["out"]
    if SEVERAL_SPANS in out["get_gist_index"]:
        return  # refused, see above
    for row, index in zip(ids, out["get_gist_index"], strict=True):
        labels = masks.segments(row[None], gist)[0].tolist()
        start, end = index
        if start is None:
            assert labels == [AFTER] * len(row)
        else:
            expected = [BEFORE] * start + [GIST] * (end - start)
            assert labels == expected + [AFTER] * (len(row) - end)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_what_a_decoder_sees_of_an_encoder(case: dict[str, Any]) -> None:
    ids, gist, out = torch.tensor(case["input_ids"]), case["gist_token"], case["out"]
    if SEVERAL_SPANS in out["get_gist_index"]:
        return
    padding = (ids != case["pad_token"]).long()
    labels = masks.segments(ids, gist)
    has_gist = (ids == gist).any(-1, keepdim=True)
    # A row that lost its gist: the published mask shows nothing, which became attention to
    # everything, padding too. Here nothing is masked but padding.
    pre_first = torch.where(has_gist, torch.tensor(out["make_mask_pre_first_gist/pad"]), padding)
    assert_equal(masks.cross_attention(labels, padding), pre_first)
    # Published neg_control: everything but what is up to the last gist, so padding was seen too.
    post_last = torch.where(has_gist, torch.tensor(out["make_mask_post_last_gist/pad"]), 0)
    hidden = masks.cross_attention(masks.relabel(labels, "neg_control"), padding)
    assert_equal(hidden, (1 - post_last) * padding)
