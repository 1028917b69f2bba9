"""Prompts and batches of real examples equal those of the published collators.

Done right instead of the same: the attention mask is 0 at padding (published: the pad's id), and a
row whose gist would be cut off is left out and counted (published: kept without its gist).
"""

from functools import cache
from typing import Any

import pytest
from torch import Tensor

from gistkit import masks
from gistkit.data.collate import IGNORED, Batch, Collator, Limits
from gistkit.models.loading import gist_id_of, load_tokenizer
from gistkit.prompts import TEMPLATES, EncodedExample, Example, PromptEncoder
from gistkit.testing import tiny_model
from tests.golden.golden import FOLDER, Case, assert_equal, every

pytestmark = pytest.mark.golden


@cache
def tokenizer_called(name: str) -> Any:
    return load_tokenizer(str(FOLDER / "tokenizers" / name))


def encoder(info: dict[str, Any]) -> PromptEncoder:
    tokenizer = tokenizer_called(info["tokenizer"])
    assert gist_id_of(tokenizer) == info["gist_token"]
    assert tokenizer.pad_token_id == info["pad_token"]
    family = "decoder" if info["kind"] == "collator_llama" else "encoder-decoder"
    return PromptEncoder(tokenizer, TEMPLATES[family], info["gist_token"])


def examples(info: dict[str, Any]) -> list[Example]:
    return [
        Example(row["instruction"], row["input"], row["output"], row["source"])
        for row in info["examples"]
    ]


def encoded(info: dict[str, Any]) -> list[EncodedExample]:
    return [row for row in encoder(info).examples(examples(info)) if row is not None]


def collator(info: dict[str, Any]) -> Collator:
    human = any("human" in row["split"] for row in info["examples"])
    limits = Limits.for_split("human" if human else "seen")
    names = ("max_length", "max_source_length", "max_target_length")
    ours = (limits.total, limits.source, limits.target)
    for name, limit in zip(names, ours, strict=True):  # the case's own limits are the published
        assert info.get(name + "_human" * human, limit) == limit
    return Collator(
        gist_id=info["gist_token"],
        pad_id=info["pad_token"],
        num_gist_tokens=(info["num_gist_tokens"],),
        conditions={info["condition"]: 1.0},
        limits=limits,
        encoder_decoder=info["kind"] == "collator_t5",
    )


def compare(batch: Batch, ids: Tensor, real: Tensor, labels: Tensor) -> None:
    assert_equal(batch["input_ids"], ids)
    assert_equal(batch["attention_mask"], real)
    assert_equal(batch["labels"], labels)


@every("collator_llama")
def test_decoder_batches(case: Case) -> None:
    info, golden = case.info, case.tensors
    rows = encoded(info)
    batch = collator(info)(rows)
    assert batch["conditions"] == [info["condition"]] * len(batch["input_ids"])
    compare(batch, golden["input_ids"], golden["attention_mask"] == 1, golden["labels"])

    labels = masks.relabel(
        masks.segments(batch["input_ids"], info["gist_token"]), info["condition"]
    )
    width = labels.shape[1]
    dense = masks.dense(masks.attends(labels), *labels.shape, width)
    assert_equal(dense, golden["attention_mask_gist"])


@every("collator_llama")
def test_decoder_prompts_and_completions(case: Case) -> None:
    info, golden = case.info, case.tensors
    rows, k = encoded(info), info["num_gist_tokens"]
    for name, ours in (
        ("prompt", [row.prompt(info["gist_token"], k) for row in rows]),
        ("completion", [row.completion for row in rows]),
    ):
        theirs, real = golden[f"{name}_input_ids"], golden[f"{name}_attention_mask"] == 1
        assert len(ours) == len(theirs)
        for mine, published, kept in zip(ours, theirs, real, strict=True):
            assert mine == published[kept].tolist()


@every("collator_llama")
def test_decoder_prompts_apart_are_the_published_ones(case: Case) -> None:
    info, golden = case.info, case.tensors
    prompts, k = encoder(info), info["num_gist_tokens"]
    kept = [row.prompt(info["gist_token"], k) for row in encoded(info)]
    texts = [
        (e.instruction, e.input)
        for e in examples(info)
        if prompts.prompt(e.instruction, e.input, k) in kept
    ]
    real = golden["prompt_attention_mask"] == 1
    for (instruction, text), ids, mask in zip(texts, golden["prompt_input_ids"], real, strict=True):
        apart = prompts.instruction(instruction, k) + prompts.input(text)
        assert apart == ids[mask].tolist()


def without_lost(info: dict[str, Any], golden: dict[str, Tensor]) -> Tensor:
    """Which published rows still have their whole gist span."""
    counts = (golden["input_ids"] == info["gist_token"]).sum(-1)
    return counts == info["num_gist_tokens"]


def trimmed(rows: Tensor, padding: int) -> Tensor:
    """Without the columns that only left-out rows needed."""
    width = int((rows != padding).any(0).nonzero().max()) + 1
    return rows[:, :width]


@every("collator_t5")
def test_encoder_decoder_batches(case: Case) -> None:
    info, golden = case.info, case.tensors
    keep, make = without_lost(info, golden), collator(info)
    if not keep.any():
        assert (make(encoded(info))["labels"] == IGNORED).all()
        return
    batch = make(encoded(info))
    assert make.lost == int((~keep).sum())
    ids = trimmed(golden["input_ids"][keep], info["pad_token"])
    real = ids != info["pad_token"]
    compare(batch, ids, real, trimmed(golden["labels"][keep], IGNORED))

    width = ids.shape[1]
    labels = masks.relabel(masks.segments(ids, info["gist_token"]), info["condition"])
    expected = golden["attention_mask"][keep][..., :width]
    seen = masks.both(masks.attends(labels), masks.visible(real.long()))
    dense = masks.dense(seen, *ids.shape, width)[:, 0]
    if expected.dim() == 3:
        assert_equal(dense, expected[:, :width])
    else:
        assert_equal(dense, expected[:, None].expand_as(dense))
    # published neg_control sees padding here; we never do
    cross = golden["cross_attention_mask"][keep][:, :width] * real
    assert_equal(masks.cross_attention(labels, real.long()), cross)

    shifted = tiny_model("t5").prepare_decoder_input_ids_from_labels(labels=batch["labels"])
    decoder_ids = golden["decoder_input_ids"][keep]
    assert_equal(shifted, decoder_ids[:, : shifted.shape[1]])
    assert bool((decoder_ids[:, shifted.shape[1] :] == 0).all())
