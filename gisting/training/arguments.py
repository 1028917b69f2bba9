"""The configuration of a training run: plain data, checked. Knows nothing about Hydra.

`training.*` holds Hugging Face's own arguments, passed through as they are, and a few of ours.
Keys of the published configs that transformers has renamed since are translated (`RENAMED`).
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments

from gisting.data.sets import DataConfig, TaskConfig
from gisting.errors import GistingError, OptionError
from gisting.masks import CONDITIONS

RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",  # a fraction below one is a ratio (transformers 5)
    "no_cuda": "use_cpu",
}
DROPPED = ("include_inputs_for_metrics", "group_by_length", "overwrite_output_dir", "report_to")
POSITIVE = (
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "generation_max_length", "num_train_epochs", "learning_rate", "logging_steps",
)  # fmt: skip
OURS = (
    "gist", "in_order", "overwrite_output_dir", "write_outputs", "evaluate_before_train",
    "do_benchmarking", "do_benchmarking_sanity_checks", "benchmarking_output_file",
    "benchmarking_profiler", "benchmarking_prompt_caching", "max_benchmarking_samples",
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
        model_name_or_path: a base model, a gist model, or "embedded".
        pretrained: read its weights; otherwise only its config, with random weights.
        config: build the config from these values (with `model_type`) instead of reading one.
        tokenizer_name: another tokenizer than the model's; "tasks" trains one on generated tasks.
        template: prompt template; default: the family's.
    """

    model_name_or_path: str = "google/flan-t5-base"
    pretrained: bool = True
    cache_dir: str | None = ".cache/"
    config: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_name: str | None = None
    template: str | None = None
    dtype: str = "float32"


@dataclass(frozen=True)
class TrainingConfig:
    """A whole run."""

    model: ModelArguments
    data: DataConfig
    gist: GistArguments
    hf: Mapping[str, Any]
    name: str = "run"
    group: str = "gist"
    report_to: tuple[str, ...] = ()
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    overwrite_output_dir: bool = False
    write_outputs: bool = True
    evaluate_before_train: bool = False
    in_order: bool = False

    def training_arguments(self, folder: Path) -> Seq2SeqTrainingArguments:
        """Hugging Face's arguments, writing to `folder` (raises OptionError)."""
        pin = torch.cuda.is_available()
        given = {"dataloader_pin_memory": pin, **self.hf, "output_dir": str(folder)}
        try:
            return Seq2SeqTrainingArguments(**given, report_to=list(self.report_to) or "none")
        except (ValueError, TypeError, ImportError) as error:
            raise OptionError(f"training: {str(error).splitlines()[0]}") from error


def parse_config(raw: Mapping[str, Any]) -> TrainingConfig:
    """Check a nested mapping, as the YAML files give it, and make it a `TrainingConfig`.

    Raises:
        OptionError: an unknown key (with the nearest known one), a value that means nothing.
    """
    try:
        return _parse(raw)
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        if isinstance(error, GistingError):
            raise
        raise OptionError(f"the configuration has a value of the wrong kind: {error}") from error


def _parse(raw: Mapping[str, Any]) -> TrainingConfig:
    training = {**raw.get("training", {})}
    gist = parse_gist(training.get("gist", {}))
    if training.get("do_benchmarking"):
        raise OptionError("training.do_benchmarking is not here yet; use python -m benchmarks")
    known = {f.name: f.default for f in dataclasses.fields(Seq2SeqTrainingArguments)}
    hf: dict[str, Any] = {}
    for key, value in training.items():
        name = RENAMED.get(key, key)
        if key in OURS or key in DROPPED or value is None:
            continue
        if name not in known:
            raise OptionError(f"unknown key training.{key}{_nearest(key, known)}")
        _check_number(key, value, known[name])
        hf[name] = value
    if training.get("group_by_length"):
        hf["train_sampling_strategy"] = "group_by_length"
    data = {**raw.get("data", {})}
    if "tasks" in data:
        data["tasks"] = _make(TaskConfig, "data.tasks", data["tasks"] or {})
    limits = {key: data.pop(key, None) for key in ("max_train_samples", "max_eval_samples")}
    for key, value in limits.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise OptionError(f"data.{key} must be at least 1, not {value}")
    wandb = raw.get("wandb", {})
    return TrainingConfig(
        model=_make(ModelArguments, "model", raw.get("model", {})),
        data=_make(DataConfig, "data", data),
        gist=gist,
        hf=hf,
        name=str(wandb.get("name", "run")),
        group=str(wandb.get("group", "gist")),
        report_to=("wandb",) if wandb.get("log") else (),
        overwrite_output_dir=bool(training.get("overwrite_output_dir")),
        write_outputs=bool(training.get("write_outputs", True)),
        evaluate_before_train=bool(training.get("evaluate_before_train")),
        in_order=bool(training.get("in_order")),
        **limits,
    )


def parse_gist(raw: Mapping[str, Any]) -> GistArguments:
    """`training.gist` (raises OptionError).

    `condition` is a name, or weights by name; `num_gist_tokens` a number, or a list of them.
    """
    unknown = set(raw) - {"condition", "num_gist_tokens", "add_gist_token"}
    if unknown:
        raise OptionError(f"unknown key training.gist.{min(unknown)}")
    if raw.get("add_gist_token", True) is not True:
        raise OptionError("training.gist.add_gist_token=false is not supported: no gist, no mask")
    given = raw.get("condition", "gist")
    weights = {given: 1.0} if isinstance(given, str) else {k: float(v) for k, v in given.items()}
    for name, weight in weights.items():
        if name not in CONDITIONS:
            known = ", ".join(CONDITIONS)
            raise OptionError(
                f"unknown condition {name!r} in training.gist.condition; choose one of {known}"
            )
        if weight <= 0:
            raise OptionError(f"the weight of condition {name!r} must be above 0, not {weight}")
    if not weights:
        raise OptionError("training.gist.condition names no condition; give gist")
    number = raw.get("num_gist_tokens", 1)
    ks = (number,) if isinstance(number, int) else tuple(number)
    if isinstance(number, bool) or not ks or not all(type(k) is int and k >= 1 for k in ks):
        raise OptionError(f"training.gist.num_gist_tokens must be at least 1, not {number}")
    return GistArguments(weights, ks)


def _make(kind: Any, section: str, raw: Mapping[str, Any]) -> Any:
    known = {f.name for f in dataclasses.fields(kind)}
    for key in raw:
        if key not in known:
            raise OptionError(f"unknown key {section}.{key}{_nearest(key, known)}")
    return kind(**raw)


def _check_number(key: str, value: Any, default: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, int | float) and not isinstance(default, bool) and not number:
        raise OptionError(f"training.{key} must be a number, not {value!r}")
    if key in POSITIVE and not (number and value > 0):
        raise OptionError(f"training.{key} must be above 0, not {value!r}")
    if key == "seed" and value < 0:
        raise OptionError(f"training.seed must be at least 0, not {value}")
    if key == "max_steps" and value < 1 and value != -1:
        raise OptionError(f"training.max_steps must be at least 1, or -1 for epochs, not {value}")


def _nearest(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""
