"""Mistakes in a training run's settings: what is meant is used, or one line says what is wrong."""

from pathlib import Path
from typing import Any

import pytest

from gistkit.cli import main
from gistkit.errors import OptionError
from gistkit.testing import byte_tokenizer, tiny_model
from gistkit.training.arguments import parse_config
from gistkit.training.job import check_best_metric

SMALL = [
    "+experiment=tiny",
    "data.tasks.stages=[[reply,1,16]]",
    "data.tasks.validation_rows=3",
    "training.max_steps=1",
    "training.use_cpu=true",
    "wandb.log=false",
]


def test_weights_of_conditions_replace_those_of_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["training.gist.condition={gist: 0.6, pos_control: 0.4}", "--cfg", "job"]
    assert main(["train", "+experiment=tiny", *given]) == 0
    shown = capsys.readouterr().out
    assert "gist: 0.6" in shown
    assert "pos_control: 0.4" in shown
    assert "neg_control" not in shown


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.gist.condition={gits: 1}", "unknown condition 'gits'"),
        ("training.gist.condition=[gist]", "is a name, or weights by name"),
        ("training.gist.condition={gist: -1}", "must be above 0, not -1"),
        ("training.gist.num_gist_tokens=1.5", "is a whole number, or a list of them, not 1.5"),
        ("training.gist.num_gist_tokens=null", "is a whole number, or a list of them, not None"),
        ("training.gist.num_gist_tokens=abc", "is a whole number, or a list of them, not 'abc'"),
        ("training.gist.num_gist_tokens=[1,0]", "must be at least 1, not [1, 0]"),
        ("data.splits=5", "data.splits is a name, or a list of them, not 5"),
        ("data.pretokenize=abc", "data.pretokenize must be true or false, not 'abc'"),
        ("wandb=null", "wandb is a section of settings; write wandb.KEY=null"),
        ("training=5", "training is a section of settings; write training.KEY=5"),
        ("model=null", "model is a section of settings; write model.KEY=null"),
        ("model.config.hidden_size=8", "give model.pretrained=false too, or leave it out"),
    ],
)
def test_a_value_that_means_nothing(
    setting: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", setting]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_a_shape_that_does_not_fit_is_reported_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    given = [f"model.model_name_or_path={tmp_path}", "model.pretrained=false", *SMALL[1:]]
    odd = ["data.dataset_name=tasks", "model.config.hidden_size=7"]
    assert main(["train", *given, *odd, f"training.output_dir={tmp_path / 'run'}"]) == 2
    told = capsys.readouterr().err
    assert "model.config: " in told
    assert "hidden size (7)" in told


def test_jobs_of_a_sweep_do_not_share_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["training.output_dir=same", "training.gist.num_gist_tokens=1,2"]
    assert main(["train", "-m", *sweep]) == 2
    assert "two jobs of the sweep would write to same" in capsys.readouterr().err


def config(**training: Any) -> Any:
    return parse_config({"training": {"use_cpu": True, "eval_strategy": "no", **training}})


def test_a_best_checkpoint_needs_validation_rows(tmp_path: Path) -> None:
    asked = config(load_best_model_at_end=True, eval_strategy="steps", eval_steps=1, save_steps=1)
    with pytest.raises(OptionError, match="no validation rows to choose the best checkpoint by"):
        check_best_metric(asked.training_arguments(tmp_path), {})


def test_a_score_that_is_not_computed_is_dropped_if_no_checkpoint_is_chosen(tmp_path: Path) -> None:
    args = config(metric_for_best_model="unseen_rougeL").training_arguments(tmp_path)
    check_best_metric(args, {"validation": []})
    assert args.metric_for_best_model is None


def test_one_split_needs_no_list() -> None:
    assert parse_config({"data": {"splits": "train"}}).data.splits == ("train",)


def test_a_run_that_saves_no_model_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = ["training.do_eval=false", "training.eval_strategy=no", "training.save_strategy=no"]
    ends += ["training.load_best_model_at_end=false", f"training.output_dir={tmp_path}"]
    assert main(["train", *SMALL, *ends]) == 0
    assert "the trained model is not saved: training.save_strategy=no" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.safetensors"))


def test_t5_from_random_weights_needs_no_start_token(tmp_path: Path) -> None:
    sizes = {"d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 1, "num_heads": 2}
    shape = [f"model.config.{name}={value}" for name, value in sizes.items()]
    given = [*SMALL, "model.config.model_type=t5", *shape, "training.do_eval=false"]
    ends = ["training.eval_strategy=no", "training.load_best_model_at_end=false"]
    assert main(["train", *given, *ends, f"training.output_dir={tmp_path}"]) == 0
