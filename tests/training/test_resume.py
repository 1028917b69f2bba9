"""A run killed at any moment resumes as if never killed: same losses, same weights, bit by bit.

Children are forked, so that none has to import torch first, and end by SIGKILL.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file
from transformers.trainer_callback import TrainerState

from gistkit.training import checkpoints
from tests.training.tiny_runs import losses, save_base, train

# Three epochs of four steps; checkpoints lie within epochs and between two lines of the log.
LONG: dict[str, Any] = {
    "max_steps": 11,
    "logging_steps": 4,
    "save_steps": 3,
    "save_total_limit": 2,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "gist": {
        "num_gist_tokens": [2, 1, 3],
        "condition": {"gist": 0.6, "pos_control": 0.2, "neg_control": 0.2},
    },
}
ORDERS: dict[str, dict[str, Any]] = {
    "random": {},
    "grouped": {"train_sampling_strategy": "group_by_length"},
    "in_order": {"in_order": True},
    "packed": {"packing": 256},
    "workers": {"dataloader_num_workers": 1},
}


def few(quick: Any, *all_cases: Any) -> list[Any]:
    """One case for every day; the others are slow."""
    others = [case for case in all_cases if case != quick]
    return [quick, *(pytest.param(case, marks=pytest.mark.slow) for case in others)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"), attention_dropout=0.3)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("t5"), "t5", dropout_rate=0.3)


def until_killed(work: Callable[[], object], *, kill: Callable[[], bool] | None = None) -> None:
    """Do `work` in a child that kills itself, or is killed once `kill` says so."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    while child.is_alive() and kill is not None:
        if kill():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
            break
        time.sleep(0.002)
    child.join()
    assert child.exitcode == -signal.SIGKILL, "it ended by itself"


def same(one: Path, other: Path) -> None:
    """Equal logs and final weights; what the clock says aside."""
    histories = []
    for folder in (one, other):
        state = json.loads((folder / "trainer_state.json").read_text())
        rows = [row for row in state["log_history"] if "loss" in row]
        histories.append([{k: row[k] for k in ("step", "loss", "grad_norm", "learning_rate")}
                          for row in rows])  # fmt: skip
    assert histories[0]
    assert histories[0] == histories[1]
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("order", few("grouped", *ORDERS))
def test_killed_between_checkpoints(base: Path, tmp_path: Path, order: str) -> None:
    options = LONG | ORDERS[order]
    train(base, tmp_path / "whole", **options)
    folder = tmp_path / "killed"
    for step in (3, 6):  # within the first epoch, within the second

        def written(step: int = step) -> bool:
            return (folder / f"checkpoint-{step}" / checkpoints.SEAL).exists()

        until_killed(lambda: train(base, folder, **options), kill=written)
    train(base, folder, **options)
    same(folder, tmp_path / "whole")


@pytest.mark.slow
def test_an_encoder_decoder_resumes_as_well(t5: Path, tmp_path: Path) -> None:
    train(t5, tmp_path / "whole", **LONG)
    folder = tmp_path / "killed"
    until_killed(
        lambda: train(t5, folder, **LONG),
        kill=(folder / "checkpoint-6" / checkpoints.SEAL).exists,
    )
    train(t5, folder, **LONG)
    same(folder, tmp_path / "whole")


@pytest.fixture(scope="module")
def uninterrupted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(base, folder, **LONG)
    return folder


def die_writing(name: str) -> None:
    """Replace the ways of writing: half of the file called `name` of checkpoint 6, then SIGKILL."""

    def dying(write: Callable[..., Any], place: int) -> Callable[..., Any]:
        def attempt(*args: Any, **kwargs: Any) -> Any:
            target = Path(str(args[place] if place < len(args) else kwargs["json_path"]))
            if target.parent.name != "checkpoint-6" or target.name != name:
                return write(*args, **kwargs)
            write(*args, **kwargs)
            os.truncate(target, target.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

        return attempt

    torch.save = dying(torch.save, 1)
    safetensors.torch.save_file = dying(safetensors.torch.save_file, 1)
    TrainerState.save_to_json = dying(TrainerState.save_to_json, 1)  # type: ignore[method-assign]


def die_at(name: str) -> None:
    """Replace a step of our own by SIGKILL, at checkpoint 6."""
    step = getattr(checkpoints, name)

    def attempt(place: Path, *args: Any, **kwargs: Any) -> None:
        if (place / "checkpoint-6").exists() or place.name == "checkpoint-6":
            os.kill(os.getpid(), signal.SIGKILL)
        step(place, *args, **kwargs)

    setattr(checkpoints, name, attempt)


WRITTEN = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


@pytest.mark.parametrize("name", few("optimizer.pt", *WRITTEN, "seal", "rotate"))
def test_killed_while_writing_a_checkpoint(
    base: Path, tmp_path: Path, uninterrupted: Path, name: str
) -> None:
    def work() -> None:
        (die_writing if "." in name else die_at)(name)
        train(base, tmp_path, **LONG)

    until_killed(work)
    torn = tmp_path / "checkpoint-6"
    assert torn.exists()
    assert (checkpoints.read_seal(torn) is None) == (name != "rotate")
    assert checkpoints.last_complete(tmp_path) == tmp_path / (
        "checkpoint-6" if name == "rotate" else "checkpoint-3"
    )
    train(base, tmp_path, **LONG)
    same(tmp_path, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.35])
def test_killed_at_any_moment(
    base: Path, tmp_path: Path, uninterrupted: Path, seconds: float
) -> None:
    begun: list[float] = []

    def later() -> bool:
        if (tmp_path / "checkpoint-3").exists() and not begun:
            begun.append(time.monotonic())
        return bool(begun) and time.monotonic() - begun[0] > seconds

    until_killed(lambda: train(base, tmp_path, **{**LONG, "max_steps": 11}), kill=later)
    train(base, tmp_path, **LONG)
    same(tmp_path, uninterrupted)


@pytest.mark.slow
def test_a_checkpoint_that_lost_part_of_a_file(
    base: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    train(base, tmp_path, **LONG)
    os.truncate(checkpoints.checkpoints(tmp_path)[0] / "model.safetensors", 100)
    train(base, tmp_path, **LONG)
    same(tmp_path, uninterrupted)
    assert (tmp_path / "damaged-checkpoint-11").is_dir()


def test_only_the_newest_stay(uninterrupted: Path) -> None:
    assert [one.name for one in checkpoints.checkpoints(uninterrupted)] == [
        "checkpoint-11",
        "checkpoint-9",
    ]


@pytest.mark.slow
def test_the_command_killed_and_started_again(base: Path, tmp_path: Path) -> None:
    def command(folder: Path) -> list[str]:
        options = {
            "model.model_name_or_path": base,
            "data.dataset_name": "tasks",
            "data.tasks.stages": "[[reply,1,64]]",
            "data.tasks.validation_rows": 2,
            "training.output_dir": folder,
            "training.gist.num_gist_tokens": "[2,1]",
            "training.max_steps": 30,
            "training.per_device_train_batch_size": 2,
            "training.save_steps": 3,
            "training.eval_strategy": "no",
            "training.do_eval": "false",
            "training.load_best_model_at_end": "false",
            "training.logging_steps": 2,
            "training.use_cpu": "true",
        }
        words = [f"{key}={value}" for key, value in options.items()]
        return [sys.executable, "-m", "gistkit.train", *words]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    folder = tmp_path / "killed"
    child = subprocess.Popen(command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (folder / "checkpoint-9").exists() and child.poll() is None:
        time.sleep(0.002)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    subprocess.run(command(folder), check=True, capture_output=True)
    assert losses(folder).keys() == losses(tmp_path / "whole").keys()
    same(folder, tmp_path / "whole")
