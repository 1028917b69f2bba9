"""Packed rows, and logits at labels only, give the plain step's loss and gradients."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gistkit.data.collate import Batch, Collator
from gistkit.errors import MaskError
from gistkit.model import GistModel
from gistkit.models.families import FAMILIES
from gistkit.prompts import EncodedExample
from gistkit.testing import tiny_gist_model

CONDITIONS = ("gist", "pos_control", "neg_control")
ROWS = [
    EncodedExample([5, 6, 7], [8, 9], [10, 11, 12, 1]),
    EncodedExample([5, 11], [8], [9, 1]),
    EncodedExample([12, 6, 9, 7, 5, 8], [10, 9, 11, 8, 5], [7, 6, 1]),
    EncodedExample([7], [5, 9, 6], [12, 10, 8, 9, 1]),
]


def collator(model: GistModel, pack: int | None) -> Collator:
    return Collator(
        gist_id=model.gist_id,
        pad_id=0,
        num_gist_tokens=(2,),
        encoder_decoder=model.adapter.padding_side == "right",
        pack=pack,
    )


def step(model: GistModel, batch: Batch, conditions: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
    model.hf_model.zero_grad()
    found = model.adapter.labelled(
        batch["input_ids"],
        batch["attention_mask"],
        batch["labels"],
        gist_id=model.gist_id,
        condition=conditions,
        documents=batch.get("documents"),
        label_documents=batch.get("label_documents"),
    )
    loss = found.cross_entropy().mean()
    loss.backward()
    grads = {n: p.grad for n, p in model.hf_model.named_parameters() if p.grad is not None}
    return loss.detach(), {name: grad.clone() for name, grad in grads.items()}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_logits_at_labels_only_give_the_models_own_loss(family: str) -> None:
    model = tiny_gist_model(family)
    batch = collator(model, None)(ROWS)
    output = model.adapter.forward(
        batch["input_ids"],
        batch["attention_mask"],
        gist_id=model.gist_id,
        condition="gist",
        labels=batch["labels"],
    )
    loss, _ = step(model, batch, ["gist"] * len(ROWS))
    assert loss.item() == pytest.approx(output["loss"].item(), rel=1e-5)


@pytest.mark.parametrize("capacity", [18, 1000])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_packed_rows_give_the_loss_and_gradients_of_padded_ones(family: str, capacity: int) -> None:
    model = tiny_gist_model(family)
    model.hf_model.eval()
    conditions = ["gist", "neg_control", "gist", "pos_control"]
    expected, grads = step(model, collator(model, None)(ROWS), conditions)
    batch = collator(model, capacity)(ROWS)
    assert len(batch["input_ids"]) < len(ROWS)
    loss, packed = step(model, batch, conditions)
    assert abs(loss.item() - expected.item()) < 1e-5
    assert packed.keys() == grads.keys()
    for name, grad in grads.items():
        assert (packed[name] - grad).norm() <= 1e-5 * max(1.0, grad.norm().item()), name


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "t5"])
def test_a_packed_example_does_not_see_its_neighbours(family: str) -> None:
    model = tiny_gist_model(family)
    model.hf_model.eval()
    collate = collator(model, 1000)
    changed = [ROWS[0], *(replace(row, instruction=row.instruction[::-1]) for row in ROWS[1:])]
    found = []
    for rows in (ROWS, changed):
        batch = collate(rows)
        result = model.adapter.labelled(
            batch["input_ids"], batch["attention_mask"], batch["labels"],
            gist_id=model.gist_id, condition="pos_control", documents=batch["documents"],
            label_documents=batch.get("label_documents"),
        )  # fmt: skip
        found.append(result.logits[result.documents == 0])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


def test_a_packed_document_with_two_spans_is_named() -> None:
    model = tiny_gist_model("llama")
    g = model.gist_id
    ids = torch.tensor([[5, g, 6, 5, g, 6, g]])
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    with pytest.raises(MaskError, match=r"row 0, document 1: gist tokens at positions \[4, 6\]"):
        model.adapter.forward(
            ids, torch.ones_like(ids), gist_id=g, condition="gist", documents=documents
        )


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_flex_attention_reads_the_same_packed_rows() -> None:
    model = tiny_gist_model("llama")
    batch = collator(model, 1000)(ROWS)
    found = []
    for attention in ("sdpa", "flex_attention"):
        model.hf_model.set_attn_implementation(attention)
        with torch.no_grad():
            found.append(
                model.adapter.labelled(
                    batch["input_ids"], batch["attention_mask"], batch["labels"],
                    gist_id=model.gist_id, documents=batch["documents"],
                    condition=["gist", "neg_control", "gist", "pos_control"],
                ).logits
            )  # fmt: skip
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)
