"""From a nested mapping, as the YAML files give it, to a checked `TrainingConfig`.

`training.*` holds Hugging Face's own arguments, which are passed through, and the `RunArguments`.
Knows nothing about Hydra.
"""

import dataclasses
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments
from transformers.training_args import OptimizerNames

from gistkit.conditions import CONDITIONS
from gistkit.data.sets import DataConfig, TaskConfig
from gistkit.errors import GistkitError, MissingExtraError, OptionError
from gistkit.training.objectives import make_objective
from gistkit.training.settings import (
    IGNORED,
    SECTIONS,
    EvaluationArguments,
    GistArguments,
    LoraArguments,
    ModelArguments,
    RunArguments,
    WandbArguments,
    nearest,
)

HF_FIELDS = Seq2SeqTrainingArguments.__dataclass_fields__
RUN_FIELDS = RunArguments.__dataclass_fields__
SINCE = {  # transformers' own new names, which its oldest supported release does not know
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
REPORTS = ("tensorboard", "wandb")
log = logging.getLogger(__name__)

# What Hugging Face's arguments do not check themselves: they accept `max_steps=1.5` or `seed=0.5`,
# and fail once the run has started.
POSITIVE = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "generation_max_length", "num_train_epochs", "learning_rate", "logging_steps", "eval_steps",
    "save_steps",
)  # fmt: skip
LEAST = {"seed": 0, "data_seed": 0, "dataloader_num_workers": 0, "generation_num_beams": 1}
STRATEGIES = ("random", "sequential", "group_by_length")


@dataclass(frozen=True)
class TrainingConfig(RunArguments):
    """A whole run: the sections of the configuration, Hugging Face's arguments, the run's own."""

    model: ModelArguments = field(default_factory=ModelArguments)
    data: DataConfig = field(default_factory=DataConfig)
    gist: GistArguments = field(default_factory=GistArguments)
    hf: Mapping[str, Any] = field(default_factory=dict)
    wandb: WandbArguments = field(default_factory=WandbArguments)
    evaluation: EvaluationArguments = field(default_factory=EvaluationArguments)

    def training_arguments(self, folder: Path) -> Seq2SeqTrainingArguments:
        """Hugging Face's arguments, writing to `folder` (raises OptionError, MissingExtraError)."""
        _check_deepspeed(self.hf.get("deepspeed"))
        pin = torch.cuda.is_available()
        defaults = {"dataloader_pin_memory": pin, "include_num_input_tokens_seen": "non_padding"}
        given = {**defaults, **self.hf, "output_dir": str(folder)}
        try:
            args = Seq2SeqTrainingArguments(**given, report_to="none")  # `reporting` does
        except (ValueError, TypeError, ImportError) as error:
            raise OptionError(_with_sections(error)) from error
        if args.fp16 and args.device.type == "cpu":  # accelerate would ignore it
            raise OptionError("training.fp16 needs a GPU; training.bf16 works on the CPU, too")
        if args.use_liger_kernel and find_spec("liger_kernel") is None:
            raise OptionError("training.use_liger_kernel needs liger: pip install liger-kernel")
        if args.n_gpu > 1:  # transformers would split batches by rows: torch's DataParallel
            raise OptionError(
                f"one process sees {args.n_gpu} GPUs; start one for each with torchrun "
                f"--nproc_per_node {args.n_gpu} -m gistkit.train, or set CUDA_VISIBLE_DEVICES=0"
            )
        return args


def _check_deepspeed(given: Any) -> None:
    if isinstance(given, str) and not Path(given).is_file():
        raise OptionError(
            f"training.deepspeed: there is no file {given}; the repository has "
            "ds_configs/stage2.json and ds_configs/stage3.json"
        )
    if given and find_spec("deepspeed") is None:
        raise MissingExtraError("deepspeed", "deepspeed")


def _with_sections(error: Exception) -> str:
    text = str(error).splitlines()[0]
    if "use_cpu" in text:
        return "training.bf16 without a GPU needs training.use_cpu=true"
    keys = re.sub(r"--([a-z_]+)", r"training.\1", text)
    return f"training: {keys}"


def parse_config(raw: Mapping[str, Any]) -> TrainingConfig:
    """Check a nested mapping (OptionError: an unknown key, with the nearest one; a bad value)."""
    try:
        if _has_published_keys(raw):
            from gistkit.paper.keys import translate

            raw = translate(raw)
        return _parse(raw)
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        if isinstance(error, GistkitError):
            raise
        raise OptionError(f"the configuration has a value of the wrong kind: {error}") from error


def _has_published_keys(raw: Mapping[str, Any]) -> bool:
    training = raw.get("training") or {}
    known = {section: set(kind.__dataclass_fields__) for section, kind in SECTIONS.items()}
    known["training"] |= {*HF_FIELDS, "gist"}
    for section, values in {**raw, "training.gist": training.get("gist")}.items():
        if section not in known or not set(values or {}) <= known[section]:
            return True
    return training.get("optim") not in (None, *OptimizerNames)


def _parse(raw: Mapping[str, Any]) -> TrainingConfig:
    sections = [key for key in SECTIONS if "." not in key]
    for key in raw:
        if key not in sections:
            raise OptionError(f"unknown key {key}{nearest(key, sections)}")
    training = {**raw.get("training", {})}
    gist = parse_gist(training.pop("gist", {}))
    hf: dict[str, Any] = {}
    for key, value in training.items():
        if key in RUN_FIELDS or value is None:
            continue
        if SINCE.get(key) in HF_FIELDS:
            key = SINCE[key]
        if key not in HF_FIELDS:
            known = (*HF_FIELDS, *RUN_FIELDS, "gist")
            raise OptionError(f"unknown key training.{key}{nearest(key, known)}")
        check_value(key, value)
        if key in IGNORED and value != HF_FIELDS[key].default:
            log.warning("training.%s has no effect: %s", key, IGNORED[key])
        hf[key] = value
    wandb: WandbArguments = _make(WandbArguments, "wandb", raw.get("wandb", {}))
    own = {key: training[key] for key in RUN_FIELDS if training.get(key) is not None}
    own |= {
        "lora": parse_lora(own.get("lora")),
        "objective": parse_objective(own.get("objective")),
        "packing": parse_packing(own.get("packing")),
        "report_to": parse_reports(own.get("report_to"), wandb.log),
    }
    for key, value in own.items():
        if isinstance(RUN_FIELDS[key].default, bool):
            check_switch(f"training.{key}", value)
    config = TrainingConfig(
        model=parse_model(raw.get("model", {})),
        data=parse_data(raw.get("data", {})),
        gist=gist,
        hf=hf,
        wandb=wandb,
        evaluation=_make(EvaluationArguments, "evaluation", raw.get("evaluation", {})),
        **own,
    )
    check_teacher(config)
    return config


def check_value(key: str, value: Any) -> None:
    """Raise OptionError if the value of Hugging Face's `training.{key}` cannot mean anything."""
    kind, default = HF_FIELDS[key].type, HF_FIELDS[key].default
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool):
        check_switch(f"training.{key}", value)
    elif isinstance(default, int | float) and not number:
        raise OptionError(f"training.{key} must be a number, not {value!r}")
    if key in POSITIVE and not (number and value > 0):
        raise OptionError(f"training.{key} must be above 0, not {value!r}")
    if kind in (int, int | None) and type(value) is not int and key not in IGNORED:
        raise OptionError(f"training.{key} must be a whole number, not {value!r}")
    if key in ("seed", "data_seed") and value >= 2**32:
        raise OptionError(f"training.{key} must be below 2**32, not {value}")
    if key in LEAST and value < LEAST[key]:
        raise OptionError(f"training.{key} must be at least {LEAST[key]}, not {value}")
    if key == "max_steps" and value < 1 and value != -1:
        raise OptionError(f"training.max_steps must be at least 1, or -1 for epochs, not {value}")
    if key == "train_sampling_strategy" and value not in STRATEGIES:
        raise OptionError(
            f"unknown training.{key} {value!r}; choose one of {', '.join(STRATEGIES)}"
        )
    if key == "label_smoothing_factor" and value:
        raise OptionError(
            "training.label_smoothing_factor is not supported: the loss is training.objective; "
            "leave it out"
        )


def check_switch(key: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise OptionError(f"{key} must be true or false, not {value!r}")


def parse_model(raw: Mapping[str, Any]) -> ModelArguments:
    model: ModelArguments = _make(ModelArguments, "model", raw)
    if model.config and model.pretrained:
        raise OptionError(
            f"model.config.{min(model.config)} only changes random weights; give "
            "model.pretrained=false too, or leave it out"
        )
    if model.config_name and model.pretrained:
        log.warning("model.config_name has no effect: pretrained weights come with their config")
        return dataclasses.replace(model, config_name=None)
    return model


def parse_data(raw: Mapping[str, Any]) -> DataConfig:
    given = {**raw}
    if "tasks" in given:
        given["tasks"] = _make(TaskConfig, "data.tasks", given["tasks"] or {})
    splits = given.get("splits")
    if splits is not None:
        names = (splits,) if isinstance(splits, str) else splits
        if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
            raise OptionError(f"data.splits is a name, or a list of them, not {splits!r}")
        given["splits"] = tuple(names)
    data: DataConfig = _make(DataConfig, "data", given)
    return data


def parse_gist(raw: Mapping[str, Any]) -> GistArguments:
    given = {**raw}
    if "condition" in given:
        given["condition"] = _condition_weights(given["condition"])
    if "num_gist_tokens" in given:
        given["num_gist_tokens"] = _gist_tokens(given["num_gist_tokens"])
    gist: GistArguments = _make(GistArguments, "training.gist", given)
    return gist


def _condition_weights(given: Any) -> dict[str, float]:
    weights = {given: 1.0} if isinstance(given, str) else given
    if not isinstance(weights, Mapping):
        raise OptionError(
            f"training.gist.condition is a name, or weights by name such as {{gist: 0.7, "
            f"pos_control: 0.3}}, not {given}"
        )
    for name, weight in weights.items():
        if name not in CONDITIONS:
            known = ", ".join(CONDITIONS)
            raise OptionError(
                f"unknown condition {name!r} in training.gist.condition; choose one of {known}"
            )
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
            raise OptionError(f"the weight of condition {name!r} must be above 0, not {weight}")
    if not weights:
        raise OptionError("training.gist.condition names no condition; give gist")
    return {name: float(weight) for name, weight in weights.items()}


def _gist_tokens(given: Any) -> tuple[int, ...]:
    ks = tuple(given) if isinstance(given, list | tuple) else (given,)
    if not ks or not all(type(k) is int for k in ks):
        raise OptionError(
            f"training.gist.num_gist_tokens is a whole number, or a list of them, not {given!r}"
        )
    if min(ks) < 1:
        raise OptionError(f"training.gist.num_gist_tokens must be at least 1, not {given}")
    return ks


def parse_lora(raw: Mapping[str, Any] | bool | None) -> LoraArguments | None:
    """Null or false trains all weights, true or a mapping trains an adapter."""
    if raw is None or raw is False:
        return None
    if raw is not True and not isinstance(raw, Mapping):
        raise OptionError(f"training.lora is null, true, or settings such as {{r: 8}}; not {raw!r}")
    given = {} if raw is True else {**raw}
    targets = given.get("target_modules", "all-linear")
    if not isinstance(targets, str | list | tuple):
        raise OptionError(
            f"training.lora.target_modules is all-linear, or names of layers; not {targets!r}"
        )
    given["target_modules"] = targets if isinstance(targets, str) else tuple(targets)
    lora: LoraArguments = _make(LoraArguments, "training.lora", given)
    return lora


def parse_reports(given: str | Iterable[str] | None, wandb: bool) -> tuple[str, ...]:
    names = {given} if isinstance(given, str) else set(given or ())
    names = (names - {"none"}) | ({"wandb"} if wandb else set())
    for name in sorted(names - set(REPORTS)):
        known = ", ".join((*REPORTS, "none"))
        raise OptionError(f"unknown training.report_to {name!r}; choose one of {known}")
    return tuple(sorted(names))


def parse_objective(raw: Any) -> dict[str, Any]:
    given = {"name": raw} if isinstance(raw, str) else {"name": "cross_entropy", **(raw or {})}
    make_objective(given)
    return given


def check_teacher(config: TrainingConfig) -> None:
    """Raise OptionError for a teacher that does not exist: no LoRA, no weights to start from."""
    teacher = config.objective.get("teacher")
    if teacher == "start" and not config.model.pretrained:
        raise OptionError(
            "training.objective.teacher=start is the model that the run starts from, and "
            "model.pretrained=false starts from random weights; give teacher=self, or a trained "
            "model"
        )
    if teacher == "base" and config.lora is None:
        raise OptionError(
            "training.objective.teacher=base is the model without its LoRA weights; give "
            "training.lora=true too, or teacher=self"
        )


def parse_packing(raw: Any) -> int | None:
    if raw is None or raw is False or raw == 0:
        return None
    if type(raw) is not int or raw < 1:
        raise OptionError(
            f"training.packing is the tokens of a row, such as 512, or null to pad; not {raw!r}"
        )
    return raw


def _make(kind: Any, section: str, raw: Mapping[str, Any]) -> Any:
    known = kind.__dataclass_fields__
    for key, value in raw.items():
        if key not in known:
            raise OptionError(f"unknown key {section}.{key}{nearest(key, known)}")
        if isinstance(known[key].default, bool):
            check_switch(f"{section}.{key}", value)
    return kind(**raw)
