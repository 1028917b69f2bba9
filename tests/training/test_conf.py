"""Every YAML file composes, to a valid run with the published values."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from gistkit.testing import byte_tokenizer, tiny_model
from gistkit.training.arguments import TrainingConfig, parse_config
from gistkit.training.composing import plain, register_defaults
from gistkit.training.settings import CONF, settings
from gistkit.training.start import start_model

GROUPS = sorted(f"+{path.parent.name}={path.stem}" for path in CONF.glob("*/*.yaml"))
MODELS = sorted(path.stem for path in CONF.glob("model/*.yaml"))
CPU = {"use_cpu": True, "bf16": False, "bf16_full_eval": False}

FLAN = {
    "learning_rate": 5e-5, "lr_scheduler_type": "constant", "warmup_steps": 0,
    "max_steps": 16000, "eval_steps": 8000, "save_steps": 8000, "generation_max_length": 128,
}  # fmt: skip
LLAMA = {
    "learning_rate": 2e-5, "weight_decay": 0.0, "warmup_steps": 0.03,
    "lr_scheduler_type": "cosine", "generation_max_length": 512, "eval_steps": 1500,
    "save_steps": 1500, "num_train_epochs": 3, "max_steps": -1,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "+model=flan-t5-base": {**FLAN, "batch": (8, 2)},
    "+experiment=flan-t5-base": {**FLAN, "batch": (8, 2)},
    "+model=flan-t5-large": {**FLAN, "batch": (2, 8)},
    "+model=flan-t5-xxl": {**FLAN, "batch": (1, 4), "bf16": True, "bf16_full_eval": True},
    "+model=llama-7b": {**LLAMA, "batch": (4, 8), "bf16": True, "bf16_full_eval": True},
    "+model=llama-debug": {**LLAMA, "batch": (4, 8), "bf16": False, "eval_steps": 2},
    "+experiment=debug": {
        "batch": (2, 2), "max_steps": 100, "eval_steps": 10, "save_strategy": "no",
        "load_best_model_at_end": False, "bf16": False, "fp16": False,
    },
}  # fmt: skip

KEYS: dict[str, Any] = {
    "wandb.log": True, "wandb.entity": "jayelm", "wandb.project": "gist", "wandb.tag": "run",
    "model.model_name_or_path": "google/flan-t5-base", "model.pretrained": True,
    "model.cache_dir": ".cache/", "model.llama_debug": False, "model.config_name": None,
    "model.tokenizer_name": None, "model.use_fast_tokenizer": True, "model.model_revision": "main",
    "model.use_auth_token": False, "data.dataset_name": "alpaca-plus",
    "data.dataset_config_name": None, "data.train_file": None, "data.validation_file": None,
    "data.max_train_samples": None, "data.max_eval_samples": None, "data.overwrite_cache": False,
    "training.gist.condition": "gist", "training.gist.num_gist_tokens": 1,
    "training.gist.add_gist_token": True, "training.do_benchmarking": False,
    "training.do_benchmarking_sanity_checks": False, "training.benchmarking_profiler": "pytorch",
    "training.benchmarking_output_file": "benchmarking-outputs.csv",
    "training.benchmarking_prompt_caching": False, "training.max_benchmarking_samples": 256,
    "training.write_outputs": True, "training.evaluate_before_train": False,
    "training.optim": "adamw_hf", "training.remove_unused_columns": False,
    "training.include_inputs_for_metrics": True, "training.report_to": "none",
    "training.predict_with_generate": True, "training.generation_max_length": 128,
    "training.do_train": True, "training.do_eval": True, "training.num_train_epochs": 3,
    "training.fp16": False, "training.per_device_train_batch_size": 8,
    "training.per_device_eval_batch_size": 8, "training.gradient_accumulation_steps": 2,
    "training.eval_steps": 1000, "training.save_steps": 1000, "training.save_total_limit": 1,
    "training.load_best_model_at_end": True, "training.greater_is_better": True,
    "training.metric_for_best_model": "unseen_rougeL", "training.dataloader_num_workers": 0,
    "training.overwrite_output_dir": False, "training.learning_rate": 5e-5, "training.seed": 42,
    "training.lr_scheduler_type": "linear", "training.weight_decay": 0.0,
}  # fmt: skip
"""Every key of the published configuration, with its default."""


@cache
def composed(*overrides: str) -> DictConfig:
    register_defaults()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


def parsed(*overrides: str) -> TrainingConfig:
    return parse_config(plain(composed(*overrides)))


@pytest.mark.parametrize("group", GROUPS)
def test_it_composes(group: str, tmp_path: Path) -> None:
    config = parsed(group)
    args = replace(config, hf={**config.hf, **CPU}).training_arguments(tmp_path)
    assert args.max_steps > 0 or args.num_train_epochs > 0


@pytest.mark.parametrize("group", PUBLISHED)
def test_published_hyperparameters(group: str) -> None:
    hf = dict(parsed(group).hf)
    hf["batch"] = (hf["per_device_train_batch_size"], hf["gradient_accumulation_steps"])
    assert {key: hf[key] for key in PUBLISHED[group]} == PUBLISHED[group]


@pytest.mark.parametrize("model", sorted(set(MODELS) - {"llama-debug"}))
def test_a_step_is_the_papers(model: str) -> None:
    """16 examples for T5, 128 for decoders; the two large published models run on 4 GPUs."""
    hf = parsed(f"+model={model}").hf
    gpus = 4 if model in ("flan-t5-xxl", "llama-7b") else 1
    step = hf["per_device_train_batch_size"] * hf["gradient_accumulation_steps"] * gpus
    assert step == (16 if "t5" in model else 128)


def test_the_published_default() -> None:
    config = parsed()
    assert config.hf["output_dir"] == (
        "exp/run-gist-1tok-flan-t5-base-alpaca-plus/run-gist-1tok-flan-t5-base-alpaca-plus-run-42"
    )
    published = {
        "num_train_epochs": 3, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8,
        "gradient_accumulation_steps": 2, "eval_steps": 1000, "save_steps": 1000,
        "save_total_limit": 1, "load_best_model_at_end": True, "seed": 42,
        "metric_for_best_model": "unseen_rougeL", "greater_is_better": True,
        "generation_max_length": 128, "learning_rate": 5e-5, "lr_scheduler_type": "linear",
        "dataloader_num_workers": 0, "fp16": False,
    }  # fmt: skip
    assert {key: config.hf[key] for key in published} == published


@pytest.mark.parametrize("key", KEYS)
def test_a_published_key_has_its_default_or_the_page_says_otherwise(key: str) -> None:
    said = {one.key: one.published for one in settings()}
    default = OmegaConf.select(composed(), key, throw_on_missing=True)
    assert key in said
    assert default == KEYS[key] or str(KEYS[key]) in said[key]


def test_the_debug_experiment() -> None:
    config = parsed("+experiment=debug")
    assert (config.wandb.group, config.data.max_eval_samples) == ("debug-alpaca-plus", 10)
    assert config.gist.num_gist_tokens == (2,)
    assert config.model.model_name_or_path == "google/flan-t5-small"
    assert config.overwrite_output_dir


def test_the_debug_llama_has_the_published_shape() -> None:
    for overrides in (["+model=llama-debug"], ["model.llama_debug=true", "model.pretrained=false"]):
        shape = parsed(*overrides).model.config
        assert (shape["hidden_size"], shape["intermediate_size"]) == (4096, 1024)
        assert (shape["num_hidden_layers"], shape["num_attention_heads"]) == (2, 32)
        assert shape["vocab_size"] == 32000


def test_conditions_by_weight_from_the_command_line() -> None:
    config = parsed("training.gist.condition={gist:0.7,pos_control:0.3}")
    assert config.gist.condition == {"gist": 0.7, "pos_control": 0.3}


@pytest.mark.parametrize("model", sorted(set(MODELS) - {"llama-debug"}))
def test_random_weights_from_the_config_alone(model: str, tmp_path: Path) -> None:
    family = "t5" if "t5" in model else "qwen3" if "qwen3" in model else "llama"
    tiny_model(family).config.save_pretrained(tmp_path)
    byte_tokenizer(closing=family == "t5").save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.safetensors"))
    config = parsed(f"+model={model}")
    here = replace(config.model, pretrained=False, model_name_or_path=str(tmp_path))
    config = replace(config, model=here)
    first, again, other = (start_model(config, seed).hf_model for seed in (1, 1, 2))
    assert first.config.model_type == family
    weights = [model.get_input_embeddings().weight for model in (first, again, other)]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    assert not torch.equal(weights[0], weights[2])


def test_every_key_is_explained_with_its_default() -> None:
    """What docs/configuration.md and --help say is what a run gets."""
    values = leaves(OmegaConf.to_container(composed(), resolve=False))
    said = {one.key: one for one in settings()}
    for key, one in said.items():
        assert one.meaning, key
        default = OmegaConf.to_container(OmegaConf.create(f"is: {one.default}"), resolve=False)
        assert default == {"is": values[key]}, key
    unsaid = {key for key in values if key not in said}
    assert {key: values[key] for key in unsaid if values[key] is not None} == {}
    assert all(key.startswith("training.") for key in unsaid), "Hugging Face's own"


def leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """Values by dotted key; an empty mapping is a value."""
    if not isinstance(node, dict) or not node:
        return {prefix.removesuffix("."): node}
    found: dict[str, Any] = {}
    for key, below in node.items():
        found |= leaves(below, f"{prefix}{key}.")
    return found
