"""The Trainer's switches, each on a model of seconds: what it must change, and what it must not."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gistkit import GistModel
from gistkit.models import lora
from gistkit.prompts import Example
from gistkit.training import checkpoints
from gistkit.training.arguments import TrainingConfig, parse_config
from gistkit.training.trainer import Evaluate
from tests.training.tiny_runs import losses, raw, run, save_base, train


def slow(*case: Any) -> Any:
    """A case that the quick tests leave out."""
    return pytest.param(*case, marks=pytest.mark.slow)


ACCUMULATED = [(8, 1), (4, 2), (2, 4)]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        "llama": save_base(tmp_path_factory.mktemp("llama")),
        "t5": save_base(tmp_path_factory.mktemp("t5"), "t5", dropout_rate=0.0),
    }


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return GistModel.from_pretrained(folder).hf_model.state_dict()


def same_weights(one: Path, other: Path, tolerance: float = 1e-4) -> None:
    first, second = weights(one), weights(other)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=tolerance, rtol=1e-3)


def rates(folder: Path) -> list[float]:
    state = json.loads((folder / "trainer_state.json").read_text())
    return [row["learning_rate"] for row in state["log_history"] if "learning_rate" in row]


@pytest.mark.parametrize(
    ("family", "adapter"),
    [("llama", True), ("t5", None), slow("llama", None), slow("t5", True)],
)
def test_gradient_checkpointing_computes_the_same(
    bases: dict[str, Path], tmp_path: Path, family: str, adapter: Any
) -> None:
    found = []
    for on in (False, True):
        folder = tmp_path / str(on)
        train(bases[family], folder, gradient_checkpointing=on, lora=adapter, max_steps=2,
              save_strategy="no")  # fmt: skip
        found.append(losses_of(folder))
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.slow
# dynamo looks at the gradients of all tensors that it meets, and torch warns it
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_compiling_computes_the_same(bases: dict[str, Path], tmp_path: Path, family: str) -> None:
    """Traced, and not built: that needs a C++ compiler."""
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    for name, options in (("plain", {}), ("compiled", compiled)):
        train(bases[family], tmp_path / name, max_steps=2, **options)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), abs=1e-5)
    same_weights(tmp_path / "compiled", tmp_path / "plain")


def losses_of(folder: Path) -> list[float]:
    """From the lines of the log, where nothing was saved."""
    rows = [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize("family", ["llama", slow("t5")])
def test_bfloat16_computes_about_the_same(
    bases: dict[str, Path], tmp_path: Path, family: str
) -> None:
    for on in (False, True):
        train(bases[family], tmp_path / str(on), bf16=on, max_steps=2)
    exact, rounded = losses(tmp_path / "False"), losses(tmp_path / "True")
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.02)
    assert {p.dtype for p in weights(tmp_path / "True").values()} == {torch.float32}


@pytest.mark.parametrize("family", ["llama", slow("t5")])
def test_accumulated_batches_are_one_big_batch(
    bases: dict[str, Path], tmp_path: Path, family: str
) -> None:
    """With one k and one condition: draws go by batch."""
    for size, times in ACCUMULATED:
        train(
            bases[family],
            tmp_path / str(size),
            gist={"num_gist_tokens": 2},
            per_device_train_batch_size=size,
            gradient_accumulation_steps=times,
            max_steps=2,
            learning_rate=1e-3,
        )
        assert losses(tmp_path / str(size)) == pytest.approx(losses(tmp_path / "8"), rel=1e-5)
        same_weights(tmp_path / str(size), tmp_path / "8")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("linear", [1.0, 0.75, 0.5, 0.25]),
        ("cosine", [1.0, 0.853553, 0.5, 0.146447]),
        ("constant_with_warmup", [0.0, 0.5, 1.0, 1.0]),
    ],
)
def test_schedules(
    bases: dict[str, Path], tmp_path: Path, schedule: str, expected: list[float]
) -> None:
    warmup = 2 if "warmup" in schedule else 0
    train(bases["llama"], tmp_path, lr_scheduler_type=schedule, warmup_steps=warmup)
    assert [rate / 1e-2 for rate in rates(tmp_path)] == pytest.approx(expected, abs=1e-6)


class Scripted:
    """Scores that are best at step 2; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, str]] = []

    def __call__(
        self, splits: Mapping[str, Sequence[Example]], config: TrainingConfig, folder: Path
    ) -> Evaluate:
        def evaluate(model: GistModel, step: int) -> dict[str, float]:
            self.asked.append((step, model.fingerprint))
            return {"unseen_rougeL": {0: 0.0, 1: 1.0, 2: 3.0, 3: 2.0}.get(step, 1.5)}

        return evaluate


BEST: dict[str, Any] = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_steps": 1,
    "save_total_limit": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "unseen_rougeL",
    "greater_is_better": True,
    "do_eval": True,
}


@pytest.mark.parametrize("adapter", [None, {"merge": False}, slow({"merge": True})])
def test_the_best_checkpoint_is_what_remains(
    bases: dict[str, Path], tmp_path: Path, adapter: Any
) -> None:
    scripted = Scripted()
    run(parse_config(raw(bases["llama"], tmp_path, lora=adapter, **BEST)), scripted)
    assert [step for step, _ in scripted.asked] == [1, 2, 3, 4, 4]
    assert [one.name for one in checkpoints.checkpoints(tmp_path)] == ["checkpoint-2"]
    best = GistModel.from_pretrained(tmp_path / "checkpoint-2")
    assert GistModel.from_pretrained(tmp_path).fingerprint == best.fingerprint
    if adapter is None:  # at its second step it was already the model that is evaluated at the end
        assert scripted.asked[1][1] == scripted.asked[-1][1] == best.fingerprint


def test_evaluating_before_the_first_step_and_only_then(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    base = bases["llama"]
    for steps, expected in ((2, [0]), (3, [])):
        scripted = Scripted()
        run(
            parse_config(raw(base, tmp_path, evaluate_before_train=True, max_steps=steps)), scripted
        )
        assert [step for step, _ in scripted.asked] == expected
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert [row["step"] for row in state["log_history"] if "eval_unseen_rougeL" in row] == [0]
    scripted = Scripted()  # by Hugging Face's own name for it
    run(parse_config(raw(base, tmp_path / "hf", eval_on_start=True, max_steps=1)), scripted)
    assert [step for step, _ in scripted.asked] == [0]


@pytest.mark.parametrize("trains", [True, False])
def test_evaluating_with_half_the_bits(
    bases: dict[str, Path], tmp_path: Path, trains: bool
) -> None:
    """Outside of training, as Hugging Face's switch does; what is saved keeps all bits."""
    seen: list[tuple[int, set[torch.dtype], set[torch.dtype]]] = []

    def make(*args: Any) -> Evaluate:
        def evaluate(model: GistModel, step: int) -> dict[str, float]:
            parameters = {one.dtype for one in model.hf_model.parameters()}
            seen.append((step, parameters, {one.dtype for one in model.hf_model.buffers()}))
            return {"unseen_rougeL": 1.0}

        return evaluate

    options = {"do_train": trains, "do_eval": True, "max_steps": 2, "bf16_full_eval": True}
    more = {"eval_strategy": "steps", "eval_steps": 1} if trains else {}
    run(parse_config(raw(bases["llama"], tmp_path, **options, **more)), make)
    full, half = {torch.float32}, {torch.bfloat16}
    during = [(1, full, full), (2, full, full)] if trains else []
    assert seen == [*during, (2 if trains else 0, half, full)]
    if trains:
        saved = load_file(tmp_path / "model.safetensors").values()
        assert {one.dtype for one in saved} == full


def test_every_k_is_recorded(bases: dict[str, Path], tmp_path: Path) -> None:
    train(bases["llama"], tmp_path, gist={"num_gist_tokens": [4, 1]}, max_steps=1, save_steps=1)
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        model = GistModel.from_pretrained(folder)
        assert model.config.num_gist_tokens == (4, 1)
        assert len(model.compress("Be kind.", num_gist_tokens=1)) == 1


def test_the_base_is_there_for_objectives_that_ask(bases: dict[str, Path], tmp_path: Path) -> None:
    distil = {"objective": {"name": "distillation", "teacher": "base"}, "max_steps": 2}
    train(bases["llama"], tmp_path, lora=True, **distil)
    assert all(0 < loss < 20 for loss in losses(tmp_path).values())
    plain = torch.nn.Linear(2, 2)
    with lora.without_adapter(plain):
        assert plain.weight.requires_grad
