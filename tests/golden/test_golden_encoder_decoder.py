"""T5: forward passes under every condition, gists of the encoder, generation.

Published neg_control lets the decoder see padding, and a row that lost its gist sees everything
evenly. Here padding is never seen and such a row is read without a mask; the corrected tensors
(`*_padfixed`) and a plain pass are what we must equal.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from gistkit import masks
from gistkit.gist import Gist, Provenance
from tests.golden.golden import Case, adapter, assert_close, assert_equal, every

pytestmark = pytest.mark.golden


def plain_pass(model: Any, ids: Tensor, padding: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=ids, attention_mask=padding, labels=labels).logits
    return logits


@every("t5_forward")
def test_forward(case: Case) -> None:
    info, golden = case.info, case.tensors
    model, gist_id = adapter(info["model"]), info["gist_token"]
    ids = golden["input_ids"]
    padding = (ids != info["pad_token"]).long()
    labels = masks.relabel(masks.segments(ids, gist_id), info["condition"])
    has_gist = (ids == gist_id).any(-1)

    expected = golden["attention_mask"]
    seen = masks.both(masks.attends(labels), masks.visible(padding))
    ours = masks.dense(seen, *ids.shape, ids.shape[1])[:, 0]
    assert_equal(ours, expected if expected.dim() == 3 else expected[:, None].expand_as(ours))

    fixed = "_padfixed" if info.get("reference_quirk_cross_mask_attends_padding") else ""
    cross = golden["cross_attention_mask" + fixed].clone()
    lost = ~has_gist if info["condition"] == "gist" else torch.zeros_like(has_gist)
    cross[lost] = padding[lost]
    assert_equal(masks.cross_attention(labels, padding), cross)

    with torch.no_grad():
        output = model.forward(
            ids, padding, gist_id=gist_id, condition=info["condition"], labels=golden["labels"]
        )
    logits = golden["logits" + fixed].clone()
    logits[lost] = plain_pass(model.model, ids, padding, golden["labels"])[lost]
    assert_close(output.logits, logits)
    if lost.any():
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), golden["labels"].flatten())
        assert_close(output.loss, loss)
    else:
        assert_close(output.loss.reshape(1), golden["loss" + fixed])
    with torch.no_grad():  # as training computes it
        predicted = model.labelled(
            ids, padding, golden["labels"], gist_id=gist_id, condition=info["condition"]
        )
    assert_close(predicted.cross_entropy().mean(), output.loss)
    real = padding.bool()
    states = output.encoder_last_hidden_state
    assert_close(states[real], golden["encoder_last_hidden_state"][real])
    shifted = model.model.prepare_decoder_input_ids_from_labels(labels=golden["labels"])
    assert_equal(shifted, golden["decoder_input_ids"])


def compress(case: Case) -> Gist:
    info, ids = case.info, case.tensors["instruction_ids"]
    k = info["num_gist_tokens"]
    tensors = adapter(info["model"]).compress(ids, torch.ones_like(ids), k)
    return Gist(tensors, (k,), (Provenance("", 0),), model="", template="")


@every("t5_cached")
def test_a_gists_hidden_states_hold_the_published_keys_and_values(case: Case) -> None:
    info, golden, gist = case.info, case.tensors, compress(case)
    assert_close(gist.tensors["output.hidden"], golden["gist_last_hidden_state"])
    assert case.tensors["instruction_ids"].shape[1] - info["num_gist_tokens"] == int(
        golden["gist_indices"]
    )
    blocks = adapter(info["model"]).model.encoder.block
    size = golden["gist_keys"].shape[-1]
    for i, block in enumerate(blocks):
        attention = block.layer[0].SelfAttention
        with torch.no_grad():
            entering = block.layer[0].layer_norm(gist.tensors[f"blocks.{i}.hidden"])
            keys, values = attention.k(entering), attention.v(entering)
        for ours, theirs in ((keys, golden["gist_keys"]), (values, golden["gist_values"])):
            assert_close(ours.unflatten(-1, (-1, size)).transpose(1, 2), theirs[i])


@every("t5_cached")
def test_reading_on_top_of_a_gist(case: Case) -> None:
    info, golden, gist = case.info, case.tensors, compress(case)
    model, gist_id = adapter(info["model"]), info["gist_token"]
    ids = golden["input_ids"]
    with torch.no_grad():
        output = model.read(
            ids, torch.ones_like(ids), gist, gist_id=gist_id, labels=golden["labels"]
        )
    assert_close(output.encoder_last_hidden_state, golden["cached_encoder_last_hidden_state"])
    assert_close(output.logits, golden["cached_logits"])
    assert_close(output.loss.reshape(1), golden["cached_loss"])

    expected = golden["cached_generated"]
    settings = GenerationConfig(
        max_new_tokens=info["max_new_tokens"],
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        pad_token_id=0,
        eos_token_id=model.model.config.eos_token_id,
    )
    made = model.generate(ids, torch.ones_like(ids), gist, settings, gist_id=gist_id)
    assert_equal(made, expected[:, 1 : made.shape[1] + 1])
    assert made.shape[1] == expected.shape[1] - 1 or made[0, -1] == settings.eos_token_id
    with torch.no_grad():
        scores = model.read(
            ids,
            torch.ones_like(ids),
            gist,
            gist_id=gist_id,
            decoder_input_ids=expected[:, :-1],
        ).logits
    assert_close(scores, golden["cached_scores"])


@every("t5_cached")
def test_masked_pass_over_the_same_text(case: Case) -> None:
    info, golden = case.info, case.tensors
    model, gist_id = adapter(info["model"]), info["gist_token"]
    ids = golden["full_ids"]
    ones = torch.ones_like(ids)
    labels = masks.segments(ids, gist_id)
    dense = masks.dense(masks.attends(labels), *ids.shape, ids.shape[1])[:, 0]
    assert_equal(dense, golden["full_mask"])
    assert_equal(masks.cross_attention(labels, ones), golden["full_cross_mask"])
    with torch.no_grad():
        output = model.forward(
            ids, ones, gist_id=gist_id, condition="gist", labels=golden["labels"]
        )
        steps = model.forward(
            ids,
            ones,
            gist_id=gist_id,
            condition="gist",
            decoder_input_ids=golden["full_generated"][:, :-1],
        )
    assert_close(output.logits, golden["full_logits"])
    assert_close(output.loss.reshape(1), golden["full_loss"])
    assert_close(output.encoder_last_hidden_state, golden["full_encoder_last_hidden_state"])
    assert_close(steps.logits, golden["full_scores"])
    assert_equal(steps.logits.argmax(-1), golden["full_generated"][:, 1:])
