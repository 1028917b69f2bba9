"""Published keys are all accepted; they do what they did, or say that they do nothing."""

import logging
from typing import Any

import pytest
from transformers import Seq2SeqTrainingArguments

from gistkit.errors import OptionError
from gistkit.paper.keys import LLAMA_DEBUG, RETIRED, UNUSED, translate
from gistkit.training.arguments import parse_config
from gistkit.training.settings import IGNORED


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"evaluation_strategy": "no", "eval_strategy": "steps"}, {"eval_strategy": "no"}),
        ({"warmup_ratio": 0.1, "warmup_steps": 0}, {"warmup_steps": 0.1}),
        ({"no_cuda": True}, {"use_cpu": True}),
        ({"per_gpu_train_batch_size": 3}, {"per_device_train_batch_size": 3}),
        ({"optim": "adamw_hf"}, {"optim": "adamw_torch_fused"}),
        ({"adafactor": True, "optim": "adamw_torch_fused"}, {"optim": "adafactor"}),
        ({"group_by_length": True}, {"train_sampling_strategy": "group_by_length"}),
        ({"evaluation_strategy": None, "eval_strategy": "steps"}, {"eval_strategy": "steps"}),
    ],
)
def test_another_name(old: dict[str, Any], new: dict[str, Any]) -> None:
    assert parse_config({"training": old}).hf == new


def test_both_places_of_deepspeed() -> None:
    given = {"deepspeed": "a.json", "training": {"seed": 1, "deepspeed": None}}
    assert parse_config(given).hf["deepspeed"] == "a.json"
    given["training"] = {"deepspeed": "b.json"}
    assert parse_config(given).hf["deepspeed"] == "b.json", "the nearer one"


@pytest.mark.parametrize("key", RETIRED)
def test_what_has_no_effect_is_said_once(key: str, caplog: pytest.LogCaptureFixture) -> None:
    assert parse_config({"training": {key: "x"}}).hf == {}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"training.{key} has no effect: ")


@pytest.mark.parametrize("key", IGNORED)
def test_what_hugging_face_would_do_and_this_trainer_does_not(
    key: str, caplog: pytest.LogCaptureFixture
) -> None:
    default = Seq2SeqTrainingArguments.__dataclass_fields__[key].default
    parse_config({"training": {key: default}})
    assert not caplog.records
    parse_config({"training": {key: not default if isinstance(default, bool) else "x"}})
    (record,) = caplog.records
    assert record.getMessage().startswith(f"training.{key} has no effect: ")


@pytest.mark.parametrize(
    ("section", "key"), [(section, key) for section, keys in UNUSED.items() for key in keys]
)
def test_other_sections_too(section: str, key: str, caplog: pytest.LogCaptureFixture) -> None:
    default = UNUSED[section][key][0]
    translate({section: {key: default}})
    assert not caplog.records, "the published default is nothing to speak of"
    assert translate({section: {key: "other"}}) == {section: {}}
    assert f"{section}.{key} has no effect" in caplog.text


def test_the_published_debug_llama() -> None:
    raw = {"model": {"llama_debug": True, "pretrained": False, "config": {"hidden_size": 8}}}
    assert parse_config(raw).model.config == {**LLAMA_DEBUG, "hidden_size": 8}
    with pytest.raises(OptionError, match="pretrained=false"):
        parse_config({"model": {"llama_debug": True}})


def test_a_config_of_its_own_needs_random_weights(caplog: pytest.LogCaptureFixture) -> None:
    assert parse_config({"model": {"config_name": "x"}}).model.config_name is None
    assert "model.config_name has no effect" in caplog.text
    raw = {"model": {"config_name": "x", "pretrained": False}}
    assert parse_config(raw).model.config_name == "x"
