"""Runs of seconds: a tiny base model on disk, generated tasks, a folder for the output."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from gistkit.errors import GistkitError
from gistkit.evaluation.answers import AnswerOptions
from gistkit.evaluation.splits import SplitEvaluator
from gistkit.prompts import Example
from gistkit.testing import byte_tokenizer, tiny_model
from gistkit.training import job
from gistkit.training.arguments import TrainingConfig, parse_config
from gistkit.training.trainer import Evaluate

ROWS = 32


def save_base(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """A plain tiny model and its tokenizer, which does not know `<GIST>`."""
    model = tiny_model(family, **{"vocab_size": 264, **changes})
    model.save_pretrained(folder)
    byte_tokenizer(closing=family == "t5").save_pretrained(folder)
    return folder


def raw(base: Path, folder: Path, **training: Any) -> dict[str, Any]:
    """Four steps of eight rows, a checkpoint every two steps, no evaluation while training."""
    model = training.pop("model", {})
    data = training.pop("data", {})
    return {
        "model": {"model_name_or_path": str(base), **model},
        "data": {
            "dataset_name": "tasks",
            "tasks": {"stages": [["reply", 1, ROWS]], "validation_rows": 2},
            **data,
        },
        "training": {
            "gist": {"num_gist_tokens": [2, 1]},
            "output_dir": str(folder),
            "do_train": True,
            "do_eval": False,
            "per_device_train_batch_size": 8,
            "max_steps": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "eval_strategy": "no",
            "save_strategy": "steps",
            "save_steps": 2,
            "seed": 1,
            "use_cpu": True,
            "remove_unused_columns": False,
            "disable_tqdm": True,
            **training,
        },
    }


def train(base: Path, folder: Path, **training: Any) -> dict[str, float]:
    return run(parse_config(raw(base, folder, **training)))


def run(
    config: TrainingConfig, evaluate: job.MakeEvaluate | None = None, **options: Any
) -> dict[str, float]:
    """Without the picture at the end, which takes longer than all the rest."""
    with patch("gistkit.training.reporting.plot_curves"):
        return job.run(config, evaluate or make_evaluate, **options)


def refused(base: Path, folder: Path, **training: Any) -> str:
    """The one line that a run ends with."""
    try:
        train(base, folder, **training)
    except GistkitError as error:
        assert "\n" not in str(error)
        return str(error)
    raise AssertionError("it ran")


def make_evaluate(
    splits: Mapping[str, Sequence[Example]], config: TrainingConfig, folder: Path
) -> Evaluate:
    return SplitEvaluator(splits, AnswerOptions(max_new_tokens=2), folder)


def losses(folder: Path) -> dict[int, float]:
    """Logged losses by step."""
    state = json.loads((folder / "trainer_state.json").read_text())
    return {row["step"]: row["loss"] for row in state["log_history"] if "loss" in row}
