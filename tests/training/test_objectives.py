"""Objectives: what a step's loss is made of."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from gistkit.data.collate import Collator
from gistkit.errors import OptionError
from gistkit.prompts import EncodedExample
from gistkit.testing import tiny_gist_model
from gistkit.training.arguments import parse_config
from gistkit.training.objectives import (
    CrossEntropy,
    Distillation,
    Mix,
    Step,
    frozen,
    make_objective,
)

ROWS = [
    EncodedExample([5, 6, 7], [8, 9], [10, 11, 12, 1]),
    EncodedExample([5, 11], [8], [9, 1]),
    EncodedExample([12, 6, 9, 7], [10, 9], [7, 6, 1]),
]
FAMILIES = ["llama", "qwen3", "t5"]


def make_step(family: str, conditions: list[str], pack: int | None = 512) -> Step:
    model = tiny_gist_model(family)
    encoder_decoder = model.adapter.padding_side == "right"
    collate = Collator(model.gist_id, 0, (2,), encoder_decoder=encoder_decoder, pack=pack)
    batch = collate(ROWS)
    batch["conditions"] = conditions
    return Step(model, model.hf_model, batch)


def logits(step: Step, condition: str | list[str]) -> torch.Tensor:
    """The model's logits at the labels, by the plain forward pass of a padded batch."""
    model, batch = step.model, step.batch
    output: Any = model.adapter.forward(
        batch["input_ids"], batch["attention_mask"],
        gist_id=model.gist_id, condition=condition, labels=batch["labels"],
    )  # fmt: skip
    targets = model.adapter.targets(batch["labels"])
    found: torch.Tensor = output["logits"][targets != -100]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_distillation_is_the_divergence_from_the_full_prompts_answer(family: str) -> None:
    step = make_step(family, ["gist"] * 3, pack=None)
    student, teacher = (logits(step, condition) / 2.0 for condition in ("gist", "pos_control"))
    expected = (teacher.softmax(-1) * (teacher.log_softmax(-1) - student.log_softmax(-1))).sum(-1)
    found = Distillation(temperature=2.0)(step)
    torch.testing.assert_close(found, 4 * expected, rtol=1e-4, atol=1e-6)
    assert bool((found > 1e-6).all())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mix_weighs_both(family: str) -> None:
    step = make_step(family, ["gist", "pos_control", "gist"])
    both = 0.25 * Distillation()(step) + 0.75 * CrossEntropy()(step)
    owners = step.student().documents
    expected = torch.where(owners == 1, CrossEntropy()(step), both)
    torch.testing.assert_close(Mix(weight=0.25)(step), expected)


def test_the_teacher_gets_no_gradient_and_no_dropout() -> None:
    step = make_step("t5", ["gist"] * 3)
    step.model.hf_model.train()
    first, second = step.teacher("self").logits, step.teacher("self").logits
    assert not first.requires_grad
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert step.model.hf_model.training


@pytest.mark.parametrize("family", FAMILIES)
def test_the_teacher_from_the_start_stays_as_it_was(family: str) -> None:
    step = make_step(family, ["gist"] * 3)
    step = replace(step, start=frozen(step.model, torch.device("cpu")))
    before = step.teacher("self").logits
    with torch.no_grad():
        for parameter in step.model.hf_model.parameters():
            parameter.mul_(1.5)
    step.model.hf_model.train()
    after = step.teacher("start").logits
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert not torch.allclose(step.teacher("self").logits, before)
    Distillation(teacher="start")(step).mean().backward()
    assert step.start is not None
    assert all(parameter.grad is None for parameter in step.start.model.parameters())
    assert any(parameter.grad is not None for parameter in step.model.hf_model.parameters())


def test_examples_without_a_gist_learn_by_cross_entropy() -> None:
    step = make_step("llama", ["pos_control", "neg_control", "pos_control"])
    torch.testing.assert_close(Distillation()(step), CrossEntropy()(step))


def test_distillation_brings_the_gists_answer_to_the_prompts() -> None:
    step = make_step("llama", ["gist"] * 3)
    optimizer = torch.optim.Adam(step.model.hf_model.parameters(), lr=1e-3)
    before = Distillation()(step).mean().item()
    for _ in range(20):
        optimizer.zero_grad()
        Distillation()(step).mean().backward()
        optimizer.step()
    assert Distillation()(step).mean().item() < 0.5 * before


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("soup", "unknown training.objective 'soup'; choose one of cross_entropy"),
        ({"name": "mix", "heat": 1}, "unknown key training.objective.heat; mix has temperature"),
        ({"name": "cross_entropy", "weight": 1}, "cross_entropy has no settings"),
        ({"name": "mix", "weight": 2}, "weight must be between 0 and 1, not 2"),
        ({"name": "mix", "temperature": 0}, "temperature must be above 0, not 0"),
        (
            {"name": "distillation", "teacher": "me"},
            "teacher 'me'; choose one of self, base, start",
        ),
    ],
)
def test_a_mistake_is_named(raw: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make_objective(raw)


def test_settings_are_read() -> None:
    assert make_objective("mix") == Mix(weight=0.5)
    assert make_objective({"name": "distillation", "temperature": 3.0}) == Distillation(3.0)


def test_a_base_teacher_needs_lora() -> None:
    objective = {"name": "distillation", "teacher": "base"}
    with pytest.raises(OptionError, match="teacher=base is the model without its LoRA weights"):
        parse_config({"training": {"objective": objective}})
    parsed = parse_config({"training": {"objective": objective, "lora": True}})
    assert parsed.objective == objective


def test_a_teacher_from_the_start_needs_trained_weights() -> None:
    objective = {"name": "distillation", "teacher": "start"}
    with pytest.raises(OptionError, match="pretrained=false starts from random weights"):
        parse_config({"training": {"objective": objective}, "model": {"pretrained": False}})
    assert parse_config({"training": {"objective": objective}}).objective == objective
