"""The configuration of a training run: plain data, checked. Knows nothing about Hydra.

`training.*` holds Hugging Face's own arguments, passed through as they are, and a few of ours.
Published keys of another name or none today are translated first (`published`).
"""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments

from gistkit.data.sets import DataConfig, TaskConfig
from gistkit.errors import GistkitError, MissingExtraError, OptionError
from gistkit.masks import CONDITIONS
from gistkit.training.benchmarking import parse_benchmarking
from gistkit.training.lora import LoraArguments, parse_lora
from gistkit.training.objectives import make_objective
from gistkit.training.published import IGNORED, say_unused, translate
from gistkit.training.validation import SWITCHES, check_switch, check_value, switch

SECTIONS = ("wandb", "model", "data", "training", "evaluation")
SINCE = {  # transformers' own new names, which its oldest supported release does not know
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
REPORTS = ("tensorboard", "wandb")
OURS = (
    "gist", "lora", "objective", "packing", "report_to", "in_order", "overwrite_output_dir",
    "write_outputs", "evaluate_before_train", "do_benchmarking", "do_benchmarking_sanity_checks",
    "benchmarking_output_file", "benchmarking_profiler", "benchmarking_prompt_caching",
    "max_benchmarking_samples",
)  # fmt: skip


@dataclass(frozen=True)
class GistArguments:
    """`training.gist`: the published keys, of which two may be several.

    Attributes:
        condition: weight of each condition; one is the published case.
        num_gist_tokens: every k that is trained; the first is the checkpoint's default.
    """

    condition: Mapping[str, float] = field(default_factory=lambda: {"gist": 1.0})
    num_gist_tokens: tuple[int, ...] = (1,)


@dataclass(frozen=True)
class ModelArguments:
    """`model`: where to start from.

    Attributes:
        model_name_or_path: a base model, a gist model, or "toy".
        pretrained: read its weights; otherwise only its config, with random weights.
        model_revision: branch, tag or commit of a hub id.
        config_name: another place to read the config from, where `pretrained` is false.
        config: build the config from these values (with `model_type`) instead of reading one.
        tokenizer_name: another tokenizer than the model's; "tasks" trains one on generated tasks.
        template: prompt template; default: the family's.
        attention: transformers' name of an attention: "sdpa", "eager", "flex_attention"; None is
            transformers' own choice.
    """

    model_name_or_path: str = "google/flan-t5-base"
    pretrained: bool = True
    cache_dir: str | None = ".cache/"
    model_revision: str = "main"
    config_name: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_name: str | None = None
    template: str | None = None
    dtype: str = "float32"
    attention: str | None = None


@dataclass(frozen=True)
class WandbArguments:
    """`wandb`: the published keys. Group and name also make the default output folder.

    Attributes:
        log: report to Weights & Biases where there is an API key, or WANDB_MODE=offline.
        entity, project: whose, and which; None is the account's default.
        tag: what the group's name begins with, and a tag of the run.
    """

    log: bool = False
    entity: str | None = None
    project: str | None = "gist"
    tag: str = "run"
    group: str = "gist"
    name: str = "run"


@dataclass(frozen=True)
class EvaluationArguments:
    """`evaluation`: how the validation splits are answered.

    Attributes:
        path: "cache" generates from the gist, as users do; "mask" under the mask, as published.
    """

    path: str = "cache"


@dataclass(frozen=True)
class TrainingConfig:
    """A whole run."""

    model: ModelArguments
    data: DataConfig
    gist: GistArguments
    hf: Mapping[str, Any]
    lora: LoraArguments | None = None
    wandb: WandbArguments = field(default_factory=WandbArguments)
    report_to: tuple[str, ...] = ()
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    overwrite_output_dir: bool = False
    write_outputs: bool = True
    evaluate_before_train: bool = False
    in_order: bool = False
    evaluation: EvaluationArguments = field(default_factory=EvaluationArguments)
    objective: Mapping[str, Any] = field(default_factory=lambda: {"name": "cross_entropy"})
    packing: int | None = None

    def training_arguments(self, folder: Path) -> Seq2SeqTrainingArguments:
        """Hugging Face's arguments, writing to `folder` (raises OptionError, MissingExtraError)."""
        _check_deepspeed(self.hf.get("deepspeed"))
        pin = torch.cuda.is_available()
        defaults = {"dataloader_pin_memory": pin, "include_num_input_tokens_seen": "non_padding"}
        given = {**defaults, **self.hf, "output_dir": str(folder)}
        try:
            args = Seq2SeqTrainingArguments(**given, report_to="none")  # `reporting` does
        except (ValueError, TypeError, ImportError) as error:
            raise OptionError(_said_of_training(error)) from error
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


def parse_config(raw: Mapping[str, Any]) -> TrainingConfig:
    """Check a nested mapping, as the YAML files give it, and make it a `TrainingConfig`.

    Raises:
        OptionError: an unknown key (with the nearest known one), a value that means nothing.
    """
    try:
        return _parse(translate(raw))
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        if isinstance(error, GistkitError):
            raise
        raise OptionError(f"the configuration has a value of the wrong kind: {error}") from error


def _parse(raw: Mapping[str, Any]) -> TrainingConfig:
    for key in raw:
        if key not in SECTIONS:
            raise OptionError(f"unknown key {key}{_nearest(key, SECTIONS)}")
    training = {**raw.get("training", {})}
    gist = parse_gist(training.get("gist", {}))
    parse_benchmarking(training)  # gistkit.train runs it
    known = {f.name: f.default for f in dataclasses.fields(Seq2SeqTrainingArguments)}
    hf: dict[str, Any] = {}
    for key, value in training.items():
        if key in OURS or value is None:
            continue
        if SINCE.get(key) in known:
            key = SINCE[key]
        if key not in known:
            raise OptionError(f"unknown key training.{key}{_nearest(key, (*known, *OURS))}")
        check_value(key, value, known[key])
        if key in IGNORED and value != known[key]:
            say_unused(f"training.{key}", IGNORED[key])
        hf[key] = value
    data = {**raw.get("data", {})}
    limits = {key: data.pop(key, None) for key in ("max_train_samples", "max_eval_samples")}
    for key, value in limits.items():
        if value is not None and (type(value) is not int or value < 1):
            raise OptionError(f"data.{key} must be at least 1, not {value}")
    wandb = _make(WandbArguments, "wandb", raw.get("wandb", {}))
    lora, objective = parse_lora(training.get("lora")), parse_objective(training.get("objective"))
    model = _make(ModelArguments, "model", raw.get("model", {}))
    check_switch("model.pretrained", model.pretrained)
    if model.config and model.pretrained:
        raise OptionError(
            f"model.config.{min(model.config)} changes random weights alone; give "
            "model.pretrained=false too, or leave it out"
        )
    check_switch("wandb.log", wandb.log)
    check_teacher(objective, lora, pretrained=model.pretrained)
    return TrainingConfig(
        model=model,
        data=parse_data(data),
        gist=gist,
        lora=lora,
        hf=hf,
        wandb=wandb,
        report_to=parse_reports(training.get("report_to"), wandb.log),
        **{key: switch(training, key, default) for key, default in SWITCHES.items()},
        evaluation=_make(EvaluationArguments, "evaluation", raw.get("evaluation", {})),
        objective=objective,
        packing=parse_packing(training.get("packing")),
        **limits,
    )


def parse_data(raw: Mapping[str, Any]) -> DataConfig:
    """`data` (raises OptionError); `splits` is a name, or a list of them."""
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
    check_switch("data.pretokenize", data.pretokenize)
    check_switch("data.overwrite_cache", data.overwrite_cache)
    return data


def parse_gist(raw: Mapping[str, Any]) -> GistArguments:
    """`training.gist` (raises OptionError).

    `condition` is a name, or weights by name; `num_gist_tokens` a number, or a list of them.
    """
    unknown = set(raw) - {"condition", "num_gist_tokens", "add_gist_token"}
    if unknown:
        raise OptionError(f"unknown key training.gist.{min(unknown)}")
    if raw.get("add_gist_token", True) is not True:
        raise OptionError("training.gist.add_gist_token=false is not supported: no gist, no mask")
    weights = _condition_weights(raw.get("condition", "gist"))
    return GistArguments(weights, _gist_tokens(raw.get("num_gist_tokens", 1)))


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


def parse_reports(given: str | Iterable[str] | None, wandb: bool) -> tuple[str, ...]:
    """`training.report_to`, a name or several, and `wandb.log` (raises OptionError)."""
    names = {given} if isinstance(given, str) else set(given or ())
    names = (names - {"none"}) | ({"wandb"} if wandb else set())
    for name in sorted(names - set(REPORTS)):
        known = ", ".join((*REPORTS, "none"))
        raise OptionError(f"unknown training.report_to {name!r}; choose one of {known}")
    return tuple(sorted(names))


def _said_of_training(error: Exception) -> str:
    """Hugging Face's complaint in our keys."""
    text = str(error).splitlines()[0]
    if "use_cpu" in text:
        return "training.bf16 without a GPU needs training.use_cpu=true"
    keys = re.sub(r"--([a-z_]+)", r"training.\1", text)
    return f"training: {keys}"


def check_teacher(
    objective: Mapping[str, Any], lora: LoraArguments | None, *, pretrained: bool
) -> None:
    """Raise OptionError for a teacher that there is none of: no LoRA, no weights to start from."""
    if objective.get("teacher") == "start" and not pretrained:
        raise OptionError(
            "training.objective.teacher=start is the model that the run starts from, and "
            "model.pretrained=false starts from random weights; give teacher=self, or a trained "
            "model"
        )
    if objective.get("teacher") == "base" and lora is None:
        raise OptionError(
            "training.objective.teacher=base is the model without its LoRA weights; give "
            "training.lora=true too, or teacher=self"
        )


def parse_objective(raw: Any) -> dict[str, Any]:
    """`training.objective`: a name, or a mapping with a name and settings (raises OptionError)."""
    given = {"name": raw} if isinstance(raw, str) else {"name": "cross_entropy", **(raw or {})}
    make_objective(given)
    return given


def parse_packing(raw: Any) -> int | None:
    """`training.packing`: tokens of a packed row; null or 0 pads instead (raises OptionError)."""
    if raw is None or raw is False or raw == 0:
        return None
    if not isinstance(raw, int) or isinstance(raw, bool) or raw < 1:
        raise OptionError(
            f"training.packing is the tokens of a row, such as 512, or null to pad; not {raw!r}"
        )
    return raw


def _make(kind: Any, section: str, raw: Mapping[str, Any]) -> Any:
    known = {f.name for f in dataclasses.fields(kind)}
    for key in raw:
        if key not in known:
            raise OptionError(f"unknown key {section}.{key}{_nearest(key, known)}")
    return kind(**raw)


def _check_deepspeed(given: Any) -> None:
    if isinstance(given, str) and not Path(given).is_file():
        raise OptionError(
            f"training.deepspeed: there is no file {given}; the repository has "
            "ds_configs/stage2.json and ds_configs/stage3.json"
        )
    if given and find_spec("deepspeed") is None:
        raise MissingExtraError("deepspeed", "deepspeed")


def _nearest(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
