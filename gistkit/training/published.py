"""Keys of the published configs that are called otherwise today, or that mean nothing any more.

    raw config ── translate ──> the same run in today's keys; a log line for each without effect

Every key of the published configs is accepted. `RETIRED` also holds the keys that Hugging Face's
training arguments had then and have no more.
"""

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from gistkit.errors import OptionError

RENAMED: Mapping[str, str] = MappingProxyType(
    {
        "evaluation_strategy": "eval_strategy",
        "warmup_ratio": "warmup_steps",  # a fraction below one is a ratio (transformers 5)
        "no_cuda": "use_cpu",
        "per_gpu_train_batch_size": "per_device_train_batch_size",
        "per_gpu_eval_batch_size": "per_device_eval_batch_size",
        "push_to_hub_model_id": "hub_model_id",
        "push_to_hub_token": "hub_token",
    }
)
"""Keys of `training`: published name -> today's. Where both are given the published name wins."""

REPLACED: Mapping[str, str] = MappingProxyType(
    {
        "adafactor": "`training.optim=adafactor`",
        "group_by_length": "`training.train_sampling_strategy=group_by_length`",
    }
)
"""Keys of `training` whose value goes elsewhere."""

RETIRED: Mapping[str, str] = MappingProxyType(
    {
        "include_inputs_for_metrics": "evaluation reads its inputs itself",
        "use_legacy_prediction_loop": "there is one evaluation loop",
        "past_index": "no supported model returns such a state",
        "logging_dir": "logs are written to training.output_dir",
        "push_to_hub_organization": "write the organization into training.hub_model_id",
        **dict.fromkeys(
            ("half_precision_backend", "fp16_backend", "fp16_opt_level"),
            "training.fp16 and training.bf16 use torch's own mixed precision",
        ),
        **dict.fromkeys(
            ("use_mps_device", "jit_mode_eval", "use_ipex", "xpu_backend", "tpu_num_cores",
             "tpu_metrics_debug", "mp_parameters", "ray_scope"),
            "transformers chooses the device and its backend",
        ),
        **dict.fromkeys(
            ("sharded_ddp", "fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap"),
            "training.fsdp and training.fsdp_config take its place",
        ),
        "torchdynamo": "training.torch_compile takes its place",
    }
)  # fmt: skip
"""Keys of `training` without effect -> why."""

IGNORED: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            ("prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object",
             "eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics"),
            "evaluation has a loop of its own",
        ),
        **dict.fromkeys(("label_names", "length_column_name"), "rows have no columns"),
        **dict.fromkeys(
            ("run_name", "project", "trackio_space_id", "trackio_bucket_id",
             "trackio_static_space_id"),
            "wandb.name and wandb.project name a run",
        ),
        "do_predict": "gistkit evaluate answers any split",
        "sortish_sampler": "training.train_sampling_strategy=group_by_length takes its place",
        "generation_config": "training.generation_max_length and generation_num_beams set it",
        "logging_nan_inf_filter": "a loss that is no number ends the run",
    }
)  # fmt: skip
"""Keys of Hugging Face's arguments today that mean nothing to this trainer -> why."""

UNUSED: Mapping[str, Mapping[str, tuple[Any, str]]] = MappingProxyType(
    {
        "model": {
            "use_fast_tokenizer": (True, "transformers 5 has one tokenizer for each model"),
            "use_auth_token": (False, "the token of `hf auth login` or HF_TOKEN is used by itself"),
        },
        "data": {
            "dataset_config_name": (None, "no data set here has several configurations"),
        },
    }
)
"""Keys of the other sections without effect -> published default, why."""

QUIET = {"include_inputs_for_metrics": True}
"""Values that the published configs give to retired keys: nothing is said about those."""

LLAMA_DEBUG: Mapping[str, Any] = MappingProxyType(
    {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 1024,
        "num_hidden_layers": 2,
        "num_attention_heads": 32,
    }
)
"""What `model.llama_debug=true` builds."""

log = logging.getLogger(__name__)


def published_names() -> tuple[str, ...]:
    """Keys of `training` that Hugging Face's arguments have no more, ours not among them."""
    return (*RENAMED, *REPLACED, *RETIRED)


def translate(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A composed config without published keys that go by another name today, or by none.

    Raises:
        OptionError: `model.llama_debug` with pretrained weights.
    """
    result = {key: value for key, value in raw.items() if key != "deepspeed"}
    if raw.get("training"):
        result["training"] = _training(raw["training"], raw.get("deepspeed"))
    for section, keys in UNUSED.items():
        if raw.get(section):
            result[section] = _without_unused(section, raw[section], keys)
    if raw.get("model"):
        result["model"] = _model(result["model"])
    return result


def _training(raw: Mapping[str, Any], deepspeed: Any) -> dict[str, Any]:
    old = {key: raw[key] for key in published_names() if raw.get(key) is not None}
    result = {key: value for key, value in raw.items() if key not in published_names()}
    for key, value in old.items():
        if key in RENAMED:
            result[RENAMED[key]] = value
        elif key in RETIRED and value != QUIET.get(key):
            say_unused(f"training.{key}", RETIRED[key])
    if old.get("group_by_length"):
        result["train_sampling_strategy"] = "group_by_length"
    if old.get("adafactor"):
        result["optim"] = "adafactor"
    if result.get("optim") == "adamw_hf":  # its implementation left transformers
        result["optim"] = "adamw_torch_fused"
    if deepspeed is not None and result.get("deepspeed") is None:
        result["deepspeed"] = deepspeed
    return result


def _model(raw: Mapping[str, Any]) -> dict[str, Any]:
    result = {key: value for key, value in raw.items() if key != "llama_debug"}
    if raw.get("llama_debug"):
        if raw.get("pretrained", True):
            raise OptionError(
                "model.llama_debug builds a model of random weights; give model.pretrained=false"
            )
        result["config"] = {**LLAMA_DEBUG, **(raw.get("config") or {})}
    if raw.get("config_name") and raw.get("pretrained", True):
        say_unused("model.config_name", "pretrained weights come with their config")
        result["config_name"] = None
    return result


def _without_unused(
    section: str, raw: Mapping[str, Any], keys: Mapping[str, tuple[Any, str]]
) -> dict[str, Any]:
    for key, (default, reason) in keys.items():
        if raw.get(key, default) not in (default, None):
            say_unused(f"{section}.{key}", reason)
    return {key: value for key, value in raw.items() if key not in keys}


def say_unused(key: str, reason: str) -> None:
    """One line for a setting that changes nothing."""
    log.warning("%s has no effect: %s", key, reason)
