"""Keys of the 2023 system's configuration that have another name today, or no meaning.

Every key of the published configuration is accepted; one without effect is logged.
`gistkit.training.arguments` calls `translate` for a configuration with keys that it does not know.
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
"""Keys of `training`: published name -> today's. If both are given the published name wins."""

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
            "training.fsdp and training.fsdp_config replace it",
        ),
        "torchdynamo": "training.torch_compile replaces it",
    }
)  # fmt: skip
"""Keys of `training` without effect -> why."""

NAMES = (*RENAMED, *REPLACED, *RETIRED)
"""Keys of `training` that Hugging Face's arguments had in 2023 and do not have today."""

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

PROFILERS = ("pytorch", "deepspeed")
BENCHMARK_KEYS: Mapping[str, tuple[Any, str]] = MappingProxyType(
    {
        "do_benchmarking": (
            False, "instead of evaluating, measure the human split with the cache and without",
        ),
        "do_benchmarking_sanity_checks": (
            False, "before, check that the cache changes no activation",
        ),
        "benchmarking_output_file": (
            "benchmarking-outputs.csv", "CSV for `gistkit benchmark report`",
        ),
        "benchmarking_profiler": ("pytorch", "or deepspeed"),
        "benchmarking_prompt_caching": (False, "cache whole instructions instead of gists"),
        "max_benchmarking_samples": (256, "number of examples to measure at most"),
    }
)  # fmt: skip
"""Keys of `training` -> default, help."""

NOTES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "deepspeed": ("the published README's name for `training.deepspeed`", ""),
        "model.llama_debug": (
            "random weights of the published debug shape; needs model.pretrained=false",
            "the same, with a LLaMA tokenizer from disk",
        ),
        "training.gist.add_gist_token": ("false is refused", "false trains without gist tokens"),
        "training.include_inputs_for_metrics": (
            f"no effect: {RETIRED['include_inputs_for_metrics']}", "",
        ),
        **{
            f"{section}.{key}": (f"no effect: {why}", "")
            for section, unused in UNUSED.items()
            for key, (_, why) in unused.items()
        },
        **{f"training.{key}": (help, "") for key, (_, help) in BENCHMARK_KEYS.items()},
    }
)  # fmt: skip
"""Published keys that `conf/config.yaml` still lists -> help, and what differs."""

log = logging.getLogger(__name__)


def translate(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A composed config without published keys that have another name today, or no meaning.

    Raises:
        OptionError: `model.llama_debug` with pretrained weights; training without gist tokens; a
            benchmark setting that is out of range.
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


def parse_benchmarking(training: Mapping[str, Any]) -> dict[str, Any] | None:
    """Values of `BENCHMARK_KEYS`, or None if no benchmark is requested (raises OptionError)."""
    if not training.get("do_benchmarking"):
        return None
    values = {
        key: default if training.get(key) is None else training[key]
        for key, (default, _) in BENCHMARK_KEYS.items()
    }
    if (profiler := values["benchmarking_profiler"]) not in PROFILERS:
        raise OptionError(
            f"training.benchmarking_profiler must be one of {', '.join(PROFILERS)}, "
            f"not {profiler!r}"
        )
    samples = values["max_benchmarking_samples"]
    if type(samples) is not int or samples < 1:
        raise OptionError(f"training.max_benchmarking_samples must be at least 1, not {samples!r}")
    return values


def _training(raw: Mapping[str, Any], deepspeed: Any) -> dict[str, Any]:
    parse_benchmarking(raw)  # checked before anything runs
    dropped = {*NAMES, *BENCHMARK_KEYS}
    result = {key: value for key, value in raw.items() if key not in dropped}
    old = {key: raw[key] for key in NAMES if raw.get(key) is not None}
    for key, value in old.items():
        if key in RENAMED:
            result[RENAMED[key]] = value
        elif key in RETIRED and (key, value) != ("include_inputs_for_metrics", True):  # published
            log.warning("training.%s has no effect: %s", key, RETIRED[key])
    if old.get("group_by_length"):
        result["train_sampling_strategy"] = "group_by_length"
    if old.get("adafactor"):
        result["optim"] = "adafactor"
    if result.get("optim") == "adamw_hf":  # transformers dropped its implementation
        result["optim"] = "adamw_torch_fused"
    if deepspeed is not None and result.get("deepspeed") is None:
        result["deepspeed"] = deepspeed
    if "add_gist_token" in (result.get("gist") or {}):
        gist = {**result["gist"]}
        if gist.pop("add_gist_token") is not True:
            raise OptionError(
                "training.gist.add_gist_token=false is not supported: no gist, no mask"
            )
        result["gist"] = gist
    return result


def _model(raw: Mapping[str, Any]) -> dict[str, Any]:
    result = {key: value for key, value in raw.items() if key != "llama_debug"}
    if raw.get("llama_debug"):
        if raw.get("pretrained", True):
            raise OptionError(
                "model.llama_debug builds a model of random weights; give model.pretrained=false"
            )
        result["config"] = {**LLAMA_DEBUG, **(raw.get("config") or {})}
    return result


def _without_unused(
    section: str, raw: Mapping[str, Any], keys: Mapping[str, tuple[Any, str]]
) -> dict[str, Any]:
    for key, (default, reason) in keys.items():
        if raw.get(key, default) not in (default, None):
            log.warning("%s.%s has no effect: %s", section, key, reason)
    return {key: value for key, value in raw.items() if key not in keys}
