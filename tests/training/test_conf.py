"""Every YAML file composes, and what it composes to is a valid run."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from gisting.train import CONF, register_defaults
from gisting.training.arguments import TrainingConfig, parse_config

GROUPS = sorted(f"+{path.parent.name}={path.stem}" for path in CONF.glob("*/*.yaml"))


def composed(*overrides: str) -> TrainingConfig:
    register_defaults()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        raw = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
    assert isinstance(raw, dict)
    return parse_config({str(key): value for key, value in raw.items()})


@pytest.mark.parametrize("group", GROUPS)
def test_it_composes(group: str, tmp_path: Path) -> None:
    config = composed(group, "training.use_cpu=true", "training.bf16=false")
    args = config.training_arguments(tmp_path)
    assert args.max_steps > 0 or args.num_train_epochs > 0


def test_the_published_default() -> None:
    config = composed()
    assert config.hf["output_dir"] == (
        "exp/run-gist-1tok-flan-t5-base-alpaca-plus/run-gist-1tok-flan-t5-base-alpaca-plus-run-42"
    )
    assert config.hf["gradient_accumulation_steps"] == 2
    assert config.hf["metric_for_best_model"] == "unseen_rougeL"


def test_published_command_lines() -> None:
    config = composed("training.gist.num_gist_tokens=2", "training.gist.condition=pos_control")
    assert config.gist.num_gist_tokens == (2,)
    assert config.gist.condition == {"pos_control": 1.0}
    debug = composed("+experiment=debug")
    assert (debug.group, debug.max_eval_samples) == ("debug-alpaca-plus", 10)
    llama = composed("+model=llama-debug")
    assert llama.model.config["hidden_size"] == 4096
    assert llama.hf["learning_rate"] == 2e-5


def test_conditions_by_weight_from_the_command_line() -> None:
    config = composed("training.gist.condition={gist:0.7,pos_control:0.3}")
    assert config.gist.condition == {"gist": 0.7, "pos_control": 0.3}
