"""Runs that must stop, and how: one line, and the last good checkpoint is still there."""

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import TrainerCallback

from gistkit import GistModel
from gistkit.errors import DataError, MissingExtraError, OptionError, SaveError, TrainingError
from gistkit.training import checkpoints
from gistkit.training.arguments import parse_config
from gistkit.training.safety import explained
from tests.training.tiny_runs import losses, raw, refused, run, save_base, train


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


class Spoil(TrainerCallback):
    """Makes weights or gradients NaN at a step."""

    def __init__(self, step: int, what: str) -> None:
        self.step = step
        self.what = what

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.what == "weights" and state.global_step + 1 == self.step:
            next(kwargs["model"].parameters()).data.fill_(float("nan"))
        if self.what == "gradient" and state.global_step + 1 == self.step:
            weight = kwargs["model"].lm_head.weight
            handle = weight.register_hook(lambda grad: (handle.remove(), grad * float("nan"))[1])


@pytest.mark.parametrize(
    ("what", "part"), [("weights", "the loss is nan"), ("gradient", "the gradient's norm is nan")]
)
def test_a_loss_or_gradient_that_is_not_a_number(
    base: Path, tmp_path: Path, what: str, part: str
) -> None:
    config = parse_config(raw(base, tmp_path, save_steps=1))
    with pytest.raises(TrainingError) as caught:
        run(config, callbacks=[Spoil(3, what)])
    message = str(caught.value)
    assert f"{part} at step 3" in message
    assert "checkpoint-2 is the last good checkpoint" in message
    assert "\n" not in message
    if what == "weights":
        assert "a batch of 8 rows that begins '<s>Instruction: " in message
    assert [one.name for one in checkpoints.checkpoints(tmp_path)] == [
        "checkpoint-2",
        "checkpoint-1",
    ]
    model = GistModel.from_pretrained(tmp_path / "checkpoint-2")
    assert all(bool(p.isfinite().all()) for p in model.hf_model.parameters())


def test_an_exploding_learning_rate_leaves_no_broken_checkpoint(base: Path, tmp_path: Path) -> None:
    message = refused(base, tmp_path, learning_rate=1e30, save_steps=1, max_grad_norm=0.0)
    assert "lower training.learning_rate" in message
    for one in checkpoints.checkpoints(tmp_path):
        model = GistModel.from_pretrained(one)
        assert all(bool(p.isfinite().all()) for p in model.hf_model.parameters())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't"
                     " allocate memory: you tried to allocate 400 bytes."),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)  # fmt: skip
def test_out_of_memory_says_what_to_lower(error: Exception) -> None:
    with pytest.raises(TrainingError, match="per_device_train_batch_size") as caught, explained():
        raise error
    assert "gradient_checkpointing" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_out_of_memory_for_real(base: Path, tmp_path: Path) -> None:
    class Hungry(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            torch.empty(1 << 60, dtype=torch.uint8)

    with pytest.raises(TrainingError, match="out of memory"):
        run(parse_config(raw(base, tmp_path)), callbacks=[Hungry()])


def test_other_failures_are_left_alone() -> None:
    with pytest.raises(RuntimeError, match="a bug"), explained():
        raise RuntimeError("a bug")


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"learning_rate": 0.5}, "training.learning_rate was 0.01 there and is 0.5 here"),
    ({"gist": {"num_gist_tokens": 3}}, "training.gist.num_gist_tokens was [2, 1] there and is [3]"),
    ({"gist": {"num_gist_tokens": [2, 1], "condition": "neg_control"}}, "training.gist.condition"),
    ({"lora": True}, "training.lora was null"),
    ({"weight_decay": 0.1}, "training.weight_decay was 0.0"),
    ({"model": {"model_name_or_path": "other"}}, "model.model_name_or_path"),
    ({"data": {"max_train_samples": 8}}, "data.max_train_samples"),
]


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    train(base, folder, max_steps=2)
    return folder


@pytest.mark.parametrize(("changes", "part"), CHANGES, ids=lambda one: str(one)[:30])
def test_a_folder_of_another_run(
    base: Path, finished: Path, changes: dict[str, Any], part: str
) -> None:
    before = sorted(path.name for path in finished.iterdir())
    message = refused(base, finished, max_steps=2, **changes)
    assert part in message
    assert "belongs to another run" in message
    assert "training.overwrite_output_dir=true" in message
    assert sorted(path.name for path in finished.iterdir()) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_does_not_overwrite_the_model_it_starts_from(tmp_path: Path, overwrite: bool) -> None:
    start = save_base(tmp_path / "start")
    before = {path.name: path.read_bytes() for path in start.iterdir() if path.is_file()}
    message = refused(start, start, overwrite_output_dir=overwrite)
    assert "is the model that the run starts from" in message
    assert {p.name: p.read_bytes() for p in start.iterdir() if p.is_file()} == before


def test_a_run_does_not_remove_the_checkpoint_it_starts_from(finished: Path) -> None:
    last = checkpoints.checkpoints(finished)[0]
    assert "would overwrite it" in refused(last, finished, overwrite_output_dir=True)
    assert checkpoints.read_seal(last) is not None


def test_a_folder_with_a_model_that_was_not_trained_there(base: Path, tmp_path: Path) -> None:
    other = save_base(tmp_path / "other")
    assert "config.json without run.json" in refused(base, other)


def test_what_may_change_when_a_run_resumes(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path, max_steps=2)
    free = {"logging_steps": 2, "save_steps": 1, "save_total_limit": 3, "weight_decay": 0.0}
    train(base, tmp_path, max_steps=3, do_eval=True, **free)
    assert sorted(losses(tmp_path)) == [1, 2]  # the third is not logged
    assert checkpoints.last_complete(tmp_path) == tmp_path / "checkpoint-3"


def test_overwriting_starts_over(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path, max_steps=4)
    train(base, tmp_path, max_steps=1, learning_rate=0.5, overwrite_output_dir=True)
    assert [one.name for one in checkpoints.checkpoints(tmp_path)] == ["checkpoint-1"]
    assert sorted(losses(tmp_path)) == [1]


def test_resuming_from_a_checkpoint_by_name(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path / "old", max_steps=4)
    first = str(tmp_path / "old/checkpoint-2")
    train(base, tmp_path / "new", max_steps=4, resume_from_checkpoint=first)
    assert losses(tmp_path / "new") == losses(tmp_path / "old")
    message = refused(base, tmp_path / "new", max_steps=4, resume_from_checkpoint=str(tmp_path))
    assert "not a complete checkpoint" in message
    message = refused(base, tmp_path / "new", max_steps=4, resume_from_checkpoint=True)
    assert "resume_from_checkpoint=True is not a complete checkpoint" in message
    other = {"gist": {"num_gist_tokens": 3}, "resume_from_checkpoint": first}
    assert "num_gist_tokens was [2, 1]" in refused(base, tmp_path / "other", **other)


def test_a_checkpoint_without_its_optimizer(base: Path, tmp_path: Path) -> None:
    train(base, tmp_path, max_steps=2, save_only_model=True)
    kept = checkpoints.last_complete(tmp_path)
    assert kept is not None
    assert GistModel.from_pretrained(kept).config.num_gist_tokens == (2, 1)
    assert "was saved without its optimizer" in refused(base, tmp_path, save_only_model=True)
    other = {"resume_from_checkpoint": str(kept), "save_only_model": True}
    assert "was saved without its optimizer" in refused(base, tmp_path / "other", **other)
    train(base, tmp_path, max_steps=1, overwrite_output_dir=True)


def test_checkpoints_of_another_program(base: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint-7").mkdir()
    assert "without a readable run.json" in refused(base, tmp_path)


def test_a_model_of_another_k_or_condition(
    base: Path, finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    only = {"do_train": False, "do_eval": True}
    message = refused(finished, tmp_path, **only, gist={"num_gist_tokens": 5})
    assert "was trained for training.gist.num_gist_tokens=2,1, not 5" in message
    message = refused(finished, tmp_path, **only, gist={"condition": "neg_control"})
    assert "was trained for training.gist.condition=gist, not neg_control" in message
    assert train(finished, tmp_path, **only)["eval_seen_samples"] == 2
    with caplog.at_level(logging.WARNING):
        train(finished, tmp_path / "more", max_steps=1, gist={"num_gist_tokens": 5})
    assert "learned k=2,1 under gist; this run teaches it k=5 under gist" in caplog.text


LONG = "word " * 400


def data(folder: Path, instructions: Sequence[str]) -> dict[str, Any]:
    file = folder / "rows.jsonl"
    rows = [{"instruction": text, "input": "x", "output": "yes"} for text in instructions]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"dataset_name": "json", "train_file": str(file), "tasks": {}}


def test_a_batch_with_nothing_left_is_skipped(base: Path, tmp_path: Path) -> None:
    rows = [*["Be kind."] * 3, LONG]
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_steps": 2}
    train(base, tmp_path / "some", data=data(tmp_path, rows), **options)
    found = losses(tmp_path / "some")
    assert sorted(found) == [1, 2]
    options |= {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1}
    train(base, tmp_path / "short", data=data(tmp_path, rows[:3]), **options)
    assert found == pytest.approx(losses(tmp_path / "short"), rel=1e-5)


def test_a_step_with_nothing_left(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="step 1 has no row left to learn from"):
        train(base, tmp_path / "run", data=data(tmp_path, [LONG] * 8), max_steps=1)


def test_more_gist_tokens_than_a_row_holds(base: Path, tmp_path: Path) -> None:
    message = refused(base, tmp_path, gist={"num_gist_tokens": [1, 512]})
    assert "num_gist_tokens=512 does not fit rows of 512 tokens" in message


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"adam_beta1": 2}, "training.optim and its settings: Invalid beta parameter"),
        ({"optim": "adamw_8bit"}, "pip install -U bitsandbytes"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "One of min_lr or min_lr_rate"),
        ({"lr_scheduler_kwargs": {"foo": 1}}, "unexpected keyword argument 'foo'"),
        ({"fsdp": "full_shard"}, "only works in distributed training"),
        ({"use_liger_kernel": True}, "pip install liger-kernel"),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 64}, "no full batch"),
        ({"max_steps": 1.5}, "max_steps must be a whole number, not 1.5"),
        ({"seed": 1.5}, "seed must be a whole number, not 1.5"),
        ({"seed": 2**40}, "below 2**32"),
        ({"dataloader_num_workers": -1}, "dataloader_num_workers must be at least 0, not -1"),
        ({"generation_num_beams": 0}, "generation_num_beams must be at least 1, not 0"),
        ({"torch_compile": "maybe"}, "torch_compile must be true or false, not 'maybe'"),
        ({"in_order": "abc"}, "in_order must be true or false, not 'abc'"),
        ({"train_sampling_strategy": "foo"}, "choose one of random, sequential, group_by_length"),
        ({"lora": "abc"}, "training.lora is null, true, or settings"),
        ({"lora": {"target_modules": 5}}, "all-linear, or names of layers; not 5"),
        ({"objective": {"name": "mix", "weight": "abc"}}, "weight must be a number, not 'abc'"),
    ],
    ids=lambda one: str(one)[:30],
)
def test_a_setting_that_a_library_refuses(
    base: Path, tmp_path: Path, settings: dict[str, Any], part: str
) -> None:
    assert part in refused(base, tmp_path, **settings)


@pytest.mark.parametrize("key", ["eval_steps", "save_steps", "logging_steps"])
def test_never_is_not_zero_steps(base: Path, tmp_path: Path, key: str) -> None:
    assert f"training.{key} must be above 0, not 0" in refused(base, tmp_path, **{key: 0})


def test_a_full_disk(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = torch.save

    def full(*args: Any, **kwargs: Any) -> None:
        if "checkpoint-2" in str(args[1]):
            raise OSError(28, "No space left on device")
        saved(*args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SaveError) as caught:
        train(base, tmp_path, save_steps=1)
    message = str(caught.value)
    assert "No space left on device; free space" in message
    assert "checkpoint-1 is complete" in message
    assert checkpoints.checkpoints(tmp_path) == [tmp_path / "checkpoint-1"]
    monkeypatch.undo()
    train(base, tmp_path, save_steps=1)
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4]


def test_a_disk_too_full_for_the_final_model(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", full)
    message = refused(base, tmp_path, max_steps=1, save_steps=5, save_strategy="epoch")
    assert "No space left on device" in message
    assert f"could not write {tmp_path}" in message


def test_an_extra_that_is_missing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    file = tmp_path / "zero.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    with pytest.raises(MissingExtraError, match=r"pip install 'gistkit\[deepspeed\]'"):
        train(base, tmp_path / "run", deepspeed=str(file))


def test_half_precision_that_the_device_lacks(base: Path, tmp_path: Path) -> None:
    for key in ("fp16", "tf32"):
        with pytest.raises(OptionError, match=f"training.*{key}"):
            train(base, tmp_path / key, **{key: True})
