"""LLaMA: forward passes under every condition, gist caches, full-prompt caches, generation.

Published keys are rotated at the instruction's offset, ours stand at 0 .. k-1: keys are rotated
before they are compared.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from gistkit import masks
from gistkit.gist import Gist, Prefix, Provenance
from gistkit.models.base import Adapter
from gistkit.models.kv_batch import CACHE
from tests.golden.golden import Case, adapter, assert_close, assert_equal, every, rotate

pytestmark = pytest.mark.golden


def projections(model: Any) -> tuple[list[Tensor], list[Tensor], list[Any]]:
    """Collect what each layer's key and value projections give: [B, S, H * D]."""
    keys: list[Tensor] = []
    values: list[Tensor] = []
    hooks = []
    for layer in model.model.layers:
        for made, projection in (
            (keys, layer.self_attn.k_proj),
            (values, layer.self_attn.v_proj),
        ):
            hooks.append(
                projection.register_forward_hook(lambda _m, _a, out, made=made: made.append(out))
            )
    return keys, values, hooks


def heads(projected: Tensor, size: int) -> Tensor:
    return projected.unflatten(-1, (-1, size)).transpose(1, 2)


@every("llama_forward")
def test_forward(case: Case) -> None:
    info, golden = case.info, case.tensors
    model = adapter(info["model"])
    ids, padding, gist = golden["input_ids"], golden["attention_mask"], info["gist_token"]
    labels = masks.relabel(masks.segments(ids, gist), info["condition"])
    assert_equal(
        masks.dense(masks.attends(labels), *ids.shape, ids.shape[1]), golden["attention_mask_gist"]
    )

    keys, values, hooks = projections(model.model)
    with torch.no_grad():
        output = model.forward(
            ids,
            padding,
            gist_id=gist,
            condition=info["condition"],
            labels=golden["labels"],
            output_hidden_states=True,
        )
    for hook in hooks:
        hook.remove()

    real = padding.bool()
    assert_close(output.logits[real], golden["logits"][real])
    assert_close(output.loss.reshape(1), golden["loss"])
    with torch.no_grad():  # as training computes it
        predicted = model.labelled(
            ids, padding, golden["labels"], gist_id=gist, condition=info["condition"]
        )
    assert_close(predicted.cross_entropy().mean().reshape(1), golden["loss"])
    for ours, theirs in zip(output.hidden_states, golden["hidden_states"], strict=True):
        assert_close(ours[real], theirs[real])
    size = golden["keys"].shape[-1]
    columns = torch.arange(ids.shape[1])  # published positions: the column, padding counted
    for ours, theirs in zip(values, golden["values"], strict=True):
        assert_close(heads(ours, size).transpose(1, 2)[real], theirs.transpose(1, 2)[real])
    for ours, theirs in zip(keys, golden["keys"], strict=True):
        turned = rotate(heads(ours, size), model.model.config, columns)
        assert_close(turned.transpose(1, 2)[real], theirs.transpose(1, 2)[real])


def as_gist(kind: type[Prefix], tensors: dict[str, Tensor], length: int) -> Prefix:
    return kind(tensors, (length,), (Provenance("", 0),), model="", template="")


def stacked(tensors: dict[str, Tensor], what: str) -> Tensor:
    """[layers, B, H, K, D] of a gist's keys or values."""
    return torch.stack([tensors[f"layers.{i}.{what}"] for i in range(len(tensors) // 2)])


def generate(
    model: Adapter, ids: Tensor, prefix: Prefix | None, info: dict[str, Any], new: int
) -> Tensor:
    known = model.model.generation_config
    settings = GenerationConfig(
        max_new_tokens=new,
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        pad_token_id=0,
        eos_token_id=info["eos_token_id"],
    )
    kept, known.eos_token_id = known.eos_token_id, None  # transformers fills in what is None
    try:
        return model.generate(
            ids, torch.ones_like(ids), prefix, settings, gist_id=info["gist_token"]
        )
    finally:
        known.eos_token_id = kept


def greedy(logits: Tensor, new: int) -> Tensor:
    return logits[:, -new:].argmax(-1)


@every("llama_cached")
def test_gist_cache(case: Case) -> None:
    info, golden = case.info, case.tensors
    model, k, gist_id = adapter(info["model"]), info["num_gist_tokens"], info["gist_token"]
    config = model.model.config
    instruction, ids = golden["instruction_ids"], golden["input_ids"]
    offset = int(golden["gist_indices"])
    assert instruction.shape[1] - k == offset

    tensors = model.compress(instruction, torch.ones_like(instruction), k)
    assert_close(stacked(tensors, "values"), golden["gist_values"])
    assert_close(rotate(stacked(tensors, "keys"), config, offset), golden["gist_keys"])

    gist = as_gist(Gist, tensors, k)
    with torch.no_grad():
        output = model.read(ids, torch.ones_like(ids), gist, gist_id=gist_id)
    assert_close(output.logits, golden["cached_logits"])
    keys = torch.stack([layer.keys for layer in output[CACHE].layers])
    assert_close(rotate(keys, config, offset), golden["cached_keys"])

    new = golden["cached_generated"].shape[1]
    made = generate(model, ids, gist, info, info["max_new_tokens"])
    assert_equal(made, golden["cached_generated"])
    longer = torch.cat([ids, made[:, :-1]], dim=1)
    with torch.no_grad():
        scores = model.read(longer, torch.ones_like(longer), gist, gist_id=gist_id).logits
    assert_close(scores[:, -new:], golden["cached_scores"])


@every("llama_cached")
def test_masked_pass_over_the_same_text(case: Case) -> None:
    info, golden = case.info, case.tensors
    model, k, gist_id = adapter(info["model"]), info["num_gist_tokens"], info["gist_token"]
    ids = golden["full_ids"]
    labels = masks.segments(ids, gist_id)
    assert_equal(masks.dense(masks.attends(labels), *ids.shape, ids.shape[1]), golden["full_mask"])

    made = golden["full_generated"]
    longer = torch.cat([ids, made[:, :-1]], dim=1)
    with torch.no_grad():
        output = model.forward(
            longer,
            torch.ones_like(longer),
            gist_id=gist_id,
            condition="gist",
            output_hidden_states=True,
        )
    assert_close(output.logits[:, : ids.shape[1]], golden["full_logits"])
    assert_close(output.logits[:, -made.shape[1] :], golden["full_scores"])
    assert_equal(greedy(output.logits, made.shape[1]), made)
    end = golden["instruction_ids"].shape[1]
    last = output.hidden_states[-1][:, end - k : end]
    assert_close(last, golden["gist_last_hidden_state"])


@every("llama_cached")
def test_full_prompt_cache(case: Case) -> None:
    info, golden = case.info, case.tensors
    model, gist_id = adapter(info["model"]), info["gist_token"]
    instruction, ids = golden["instruction_ids"], golden["input_ids"]
    assert int(golden["instrcache_gist_indices"]) == 0
    tensors = model.cache_prompt(instruction, torch.ones_like(instruction))
    assert_close(stacked(tensors, "keys"), golden["instrcache_keys"])
    prefix = as_gist(Prefix, tensors, instruction.shape[1])
    with torch.no_grad():
        output = model.read(ids, torch.ones_like(ids), prefix, gist_id=gist_id)
    assert_close(output.logits, golden["instrcache_logits"])
    made = generate(model, ids, prefix, info, info["max_new_tokens"])
    assert_equal(made, golden["instrcache_generated"])

    full = golden["full_ids"]
    with torch.no_grad():
        plain = model.forward(full, torch.ones_like(full), gist_id=gist_id, condition="pos_control")
    assert_close(plain.logits, golden["pos_full_logits"])
    made = generate(model, full, None, info, info["max_new_tokens"])
    assert_equal(made, golden["pos_full_generated"])
