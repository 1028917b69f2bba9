"""A whole run on a model of a few thousand parameters."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from gistkit.errors import DataError, ModelNotFoundError, OptionError, SaveError
from gistkit.evaluation.answers import AnswerOptions
from gistkit.evaluation.splits import SplitEvaluator
from gistkit.model import GistModel
from gistkit.prompts import Example
from gistkit.training.arguments import TrainingConfig, parse_config
from gistkit.training.job import run
from gistkit.training.trainer import Evaluate

MODEL = {
    "model_name_or_path": "tiny",
    "pretrained": False,
    "tokenizer_name": "tasks",
    "config": {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
    },
}


def config(folder: Path, **training: Any) -> TrainingConfig:
    return parse_config(
        {
            "model": MODEL,
            "data": {
                "dataset_name": "tasks",
                "tasks": {"stages": [["reply", 1, 64]], "validation_rows": 4},
            },
            "training": {
                "gist": {"num_gist_tokens": [2, 1]},
                "output_dir": str(folder),
                "do_train": True,
                "do_eval": True,
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
    )


def make_evaluate(
    splits: Mapping[str, Sequence[Example]], config: TrainingConfig, folder: Path
) -> Evaluate:
    return SplitEvaluator(splits, AnswerOptions(max_new_tokens=4), folder)


def losses(folder: Path) -> list[float]:
    state = json.loads((folder / "trainer_state.json").read_text())
    return [row["loss"] for row in state["log_history"] if "loss" in row]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run(config(folder), make_evaluate)
    return folder


def test_it_learns(trained: Path) -> None:
    found = losses(trained)
    assert len(found) == 4
    assert found[-1] < found[0]


def test_the_result_is_a_gist_model(trained: Path) -> None:
    model = GistModel.from_pretrained(trained)
    assert model.config.num_gist_tokens == (2, 1)
    assert model.config.conditions == ("gist",)
    assert model.config.training["seed"] == 1
    assert len(model.generate(["Tom wants a cake"], model.compress("You are Nora."))) == 1


def test_outputs_and_results_are_files(trained: Path) -> None:
    with (trained / "outputs-4-validation_unseen.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert rows[0]["x"].count("<GIST>") == 2
    assert json.loads((trained / "eval_results.json").read_text())["eval_unseen_samples"] == 4
    made = json.loads((trained / "run.json").read_text())
    assert made["seed"] == 1
    assert "transformers" in made["versions"]


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(trained: Path, tmp_path: Path) -> None:
    run(config(tmp_path, max_steps=2, lr_scheduler_type="constant"), make_evaluate)
    run(config(tmp_path, lr_scheduler_type="constant"), make_evaluate)
    whole = tmp_path / "whole"
    run(config(whole, lr_scheduler_type="constant"), make_evaluate)
    assert losses(tmp_path) == pytest.approx(losses(whole), abs=1e-6)
    first, second = (GistModel.from_pretrained(folder) for folder in (tmp_path, whole))
    for one, other in zip(first.hf_model.parameters(), second.hf_model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_same_seed_gives_the_same_run(trained: Path, tmp_path: Path) -> None:
    run(config(tmp_path), make_evaluate)
    assert losses(tmp_path) == losses(trained)


def test_no_rows_is_an_error(tmp_path: Path) -> None:
    empty = parse_config(
        {
            "model": MODEL,
            "data": {"dataset_name": "tasks", "splits": ["validation_seen"]},
            "training": {"output_dir": str(tmp_path), "do_train": True, "use_cpu": True},
        }
    )
    with pytest.raises(DataError, match="no rows to train on"):
        run(empty, make_evaluate)


def test_a_base_model_that_is_not_there(tmp_path: Path) -> None:
    raw = {
        "model": {"model_name_or_path": str(tmp_path / "none")},
        "data": {
            "dataset_name": "tasks",
            "tasks": {"stages": [["reply", 1, 4]], "validation_rows": 1},
        },
        "training": {"output_dir": str(tmp_path), "do_train": True, "use_cpu": True},
    }
    with pytest.raises(ModelNotFoundError, match="none"):
        run(parse_config(raw), make_evaluate)


def test_a_score_that_is_not_computed_is_refused_before_training(tmp_path: Path) -> None:
    bogus = config(
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="bogus",
    )
    with pytest.raises(OptionError, match=r"choose one of seen_rouge1, .*seen_loss"):
        run(bogus, make_evaluate)


def test_an_output_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="choose another folder"):
        run(config(tmp_path / "file"), make_evaluate)
