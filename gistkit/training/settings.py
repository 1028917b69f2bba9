"""The settings of a run: what can be set, what it means, and the text that says so.

    fields ── settings ──> help_text ──> gistkit train --help
                           page ───────> docs/configuration.md

Defaults of a command come from `conf/config.yaml`; defaults here are those of `parse_config`.
Imports neither torch nor transformers at its top, so that `--help` is quick.
"""

import dataclasses
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import fill
from types import MappingProxyType
from typing import Any

from gistkit.data.sets import DataConfig, TaskConfig, setting
from gistkit.errors import OptionError

CONF = Path(__file__).resolve().parents[1] / "conf"
UNPUBLISHED = "no such key"


@dataclass(frozen=True)
class GistArguments:
    """`training.gist`. The first of several `num_gist_tokens` is the checkpoint's default."""

    condition: Mapping[str, float] = setting(
        lambda: {"gist": 1.0},
        "`gist`, `pos_control` (nothing masked), `neg_control` (no instruction), or weights by "
        "name: drawn for each row",
        "one name",
    )
    num_gist_tokens: tuple[int, ...] = setting(
        (1,),
        "number of gist tokens k, or a list: drawn for each batch, any of them at inference, the "
        "first is the checkpoint's default",
        "one number",
    )


@dataclass(frozen=True)
class LoraArguments:
    """`training.lora`: small matrices of rank `r` beside frozen weights, scaled by alpha / r.

    `target_modules` may also be names of layers. `merge` saves a plain model with the adapter in
    its weights; otherwise the adapter alone is saved.
    """

    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    merge: bool = True

    def __post_init__(self) -> None:
        for name in ("r", "alpha"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise OptionError(f"training.lora.{name} must be at least 1, not {value!r}")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise OptionError(
                f"training.lora.dropout must be at least 0 and below 1, not {self.dropout!r}"
            )


@dataclass(frozen=True)
class ModelArguments:
    """`model`: where to start from."""

    model_name_or_path: str = setting(
        "google/flan-t5-base", "base model or gist model: folder, hub id, or `toy`"
    )
    pretrained: bool = setting(True, "false: random weights, from the config alone")
    cache_dir: str | None = setting(".cache/", "folder of downloads")
    model_revision: str = setting("main", "branch, tag or commit of a hub id")
    config_name: str | None = setting(
        None, "read the config from here, with model.pretrained=false"
    )
    config: Mapping[str, Any] = setting(
        dict,
        "config values of a model with random weights (model.pretrained=false), over those read; "
        "with `model_type` nothing is read",
        UNPUBLISHED,
    )
    tokenizer_name: str | None = setting(
        None, "another tokenizer; `toy`, or `tasks` to train one on generated tasks"
    )
    template: str | None = setting(
        None,
        "`decoder` or `encoder-decoder` (published), or `chat`; null: the family's",
        UNPUBLISHED,
    )
    attention: str | None = setting(
        None,
        "`sdpa`, `eager`, or `flex_attention` (GPU: block masks, for packed rows); null: "
        "transformers' choice",
        UNPUBLISHED,
    )
    dtype: str = setting("float32", "of the weights; mixed precision is training.bf16", UNPUBLISHED)


@dataclass(frozen=True)
class WandbArguments:
    """`wandb`. Group and name also make the default output folder."""

    log: bool = setting(
        False,
        "report to Weights & Biases if there is an API key or WANDB_MODE=offline; otherwise one "
        "line says that it is off",
    )
    entity: str | None = setting(None, "user or team; null is the account's own", "jayelm")
    project: str | None = setting("gist", "project of that account")
    tag: str = setting("run", "your name for the experiment: the group begins with it")
    group: str = setting("gist", "group of runs, and first part of the output folder")
    name: str = setting("run", "the run, and second part of the output folder")


@dataclass(frozen=True)
class EvaluationArguments:
    """`evaluation`: how the validation splits are answered."""

    path: str = setting(
        "cache",
        "`cache`: answer from the gist, as users do. `mask`: a full pass under the mask for every "
        "token; slow, greedy, the same answers",
        "mask",
    )


@dataclass(frozen=True)
class RunArguments:
    """The keys of `training` that are not Hugging Face's; `report_to` replaces theirs."""

    lora: LoraArguments | None = setting(  # noqa: RUF009
        None,
        "adapt frozen weights: true, or {r: 16, alpha: 32, dropout: 0.0, target_modules: "
        "all-linear, merge: true}; null trains all weights",
        UNPUBLISHED,
    )
    objective: Mapping[str, Any] = setting(
        lambda: {"name": "cross_entropy"},
        "`cross_entropy`, `distillation` or `mix`, with settings of their own; docs/training.md",
        "cross_entropy only",
    )
    packing: int | None = setting(
        None,
        "tokens of a row that holds several examples; null pads each example to the longest of "
        "its batch",
        "pads",
    )
    report_to: tuple[str, ...] = setting(
        (), "`tensorboard`, `wandb`, or several; wandb.log adds wandb", "must be none"
    )
    in_order: bool = setting(False, "keep the order of the data: a curriculum", UNPUBLISHED)
    overwrite_output_dir: bool = setting(
        False, "true: remove the checkpoints in the folder and start over instead of resuming"
    )
    write_outputs: bool = setting(True, "write outputs-<step>-<split>.csv at each evaluation")
    evaluate_before_train: bool = setting(
        False, "evaluate before the first step", "after the first step"
    )


SECTIONS: Mapping[str, type[Any]] = MappingProxyType(
    {
        "wandb": WandbArguments,
        "model": ModelArguments,
        "data": DataConfig,
        "data.tasks": TaskConfig,
        "evaluation": EvaluationArguments,
        "training": RunArguments,
        "training.gist": GistArguments,
    }
)

HUGGING_FACE: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "output_dir": (
            "folder of checkpoints, outputs and results; created if missing", "must exist",
        ),
        "num_train_epochs": ("passes over the data", ""),
        "max_steps": ("optimizer steps; -1 counts epochs", ""),
        "learning_rate": ("the highest learning rate", ""),
        "lr_scheduler_type": (
            "`linear`, `cosine`, `constant`, ...",
            "the same, but DeepSpeed's config replaced it by a warm-up without decay",
        ),
        "warmup_steps": (
            "steps, or below 1 a fraction of all steps", "also `warmup_ratio`, still accepted",
        ),
        "optim": (
            "the optimizer; fused is one pass over the weights",
            "adamw_hf, which transformers no longer has",
        ),
        "per_device_train_batch_size": ("rows of a step on each device", ""),
        "gradient_accumulation_steps": ("batches that make one update", ""),
        "bf16": ("mixed precision in bfloat16", ""),
        "gradient_checkpointing": (
            "recompute activations in the backward pass: less memory, more time",
            "T5 crashed with it",
        ),
        "deepspeed": ("DeepSpeed's JSON file: ds_configs/stage3.json; docs/distributed.md", ""),
        "predict_with_generate": ("no effect: evaluation always generates", ""),
        "remove_unused_columns": ("no effect: rows have no columns to remove", ""),
        "generation_max_length": ("longest answer; for decoders including the prompt", ""),
        "generation_num_beams": ("beams of an evaluation's answers; null: one", ""),
        "disable_tqdm": ("no progress bar", ""),
        "eval_strategy": (
            "when to evaluate: `steps`, `epoch`, `no`",
            "named evaluation_strategy, still accepted",
        ),
        "eval_steps": ("steps between evaluations", ""),
        "save_steps": ("steps between checkpoints", ""),
        "metric_for_best_model": ("the score that decides which checkpoint is best", ""),
        "logging_steps": ("steps between reports of the loss", "500"),
        "seed": ("of weights, order of the data and dropout", ""),
        "do_train": ("train", ""),
        "do_eval": ("score the validation splits at the end", ""),
    }
)  # fmt: skip
"""Hugging Face's arguments: help where theirs does not fit or `--help` needs it, published."""

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
        "sortish_sampler": "use training.train_sampling_strategy=group_by_length",
        "generation_config": "set training.generation_max_length and generation_num_beams",
        "logging_nan_inf_filter": "a loss that is not a number ends the run",
    }
)  # fmt: skip
"""Hugging Face's arguments that mean nothing to this trainer -> why."""

MAIN = (
    "training.gist.condition", "training.gist.num_gist_tokens", "model.model_name_or_path",
    "model.pretrained", "data.dataset_name", "data.data_dir", "data.max_train_samples",
    "data.max_eval_samples", "training.output_dir", "training.num_train_epochs",
    "training.max_steps", "training.learning_rate", "training.per_device_train_batch_size",
    "training.gradient_accumulation_steps", "training.bf16", "training.eval_steps",
    "training.save_steps", "training.seed", "wandb.log", "wandb.tag",
)  # fmt: skip
"""The settings that `--help` lists; docs/configuration.md has all of them."""

WIDTH = 88
HELP = """\
Usage: gistkit train [SETTING]... [+GROUP=NAME]... [OPTION]...

  Train a gist model and score it on the validation splits. Checkpoints, outputs and
  results go to exp/<group>/<run>; rerun the same command to resume.

  gistkit train +experiment=debug
  gistkit train training.gist.num_gist_tokens=2 training.gist.condition=gist wandb.tag=mine
  gistkit train +model=llama-7b training.per_device_train_batch_size=1
  gistkit train -m training.gist.condition=gist,pos_control,neg_control
"""
OPTIONS = """\
Options:
  -m, --multirun   Run every combination of values written with commas, one after the
                   other, or as +launcher says.
  -c, --cfg job    Print the composed configuration and do not run; with --resolve,
                   values that refer to others are filled in.
  --hydra-help     Hydra's own options.
  -h, --help       This text.
"""
PAGE = """\
# Settings of a training run

<!-- Written by `python -m gistkit.cli.docs`; do not edit. -->

`gistkit train key=value +group=name`; [training.md](training.md) explains how to use them. Defaults
come from [gistkit/conf/config.yaml](../gistkit/conf/config.yaml), then from the groups given, then
from the command line; `gistkit train --cfg job` prints the resulting configuration. The last column
is what the published system had, where it differs.

## Groups

| group | names |
|---|---|
"""
REST = """\

## Hugging Face's other arguments

Every argument of `Seq2SeqTrainingArguments` may be set, with the meaning and the default that
transformers gives it (here: of the version in constraints.txt), unless the last column says
otherwise. `null` stands for that default.

| key | default | |
|---|---|---|
"""
OLD = """\

## Published names

Arguments that transformers had when the paper was written and has since dropped. They are accepted.

| key | today |
|---|---|
"""


@dataclass(frozen=True)
class Setting:
    """One key of `conf/config.yaml`, with its sections as on the command line."""

    key: str
    default: str
    meaning: str
    published: str


@cache
def defaults() -> Mapping[str, str]:
    """The keys of `conf/config.yaml` in its order, without Hydra's own, as YAML writes them."""
    from omegaconf import OmegaConf  # with the extra `train`

    loaded = OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"), resolve=False)
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in _leaves(loaded)
        if not key.startswith(("hydra.", "defaults"))
    }


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def settings() -> list[Setting]:
    return [_setting(key, default) for key, default in defaults().items()]


def _setting(key: str, default: str) -> Setting:
    path = "training.objective" if key == "training.objective.name" else key
    section, _, name = path.rpartition(".")
    for field in dataclasses.fields(SECTIONS[section]) if section in SECTIONS else ():
        if field.name == name:
            return Setting(key, default, field.metadata["help"], field.metadata["published"])
    if section == "training" and name in HUGGING_FACE:
        return Setting(key, default, *HUGGING_FACE[name])
    from gistkit.paper import keys

    if key in keys.NOTES:
        return Setting(key, default, *keys.NOTES[key])
    from transformers import Seq2SeqTrainingArguments

    help = Seq2SeqTrainingArguments.__dataclass_fields__[name].metadata["help"]
    return Setting(key, default, " ".join(help.split()).removesuffix("."), "")


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?`, or "" if none is similar."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def groups() -> dict[str, list[str]]:
    """Names of the files in each group, as `+group=name` takes them."""
    found: dict[str, list[str]] = {}
    for path in sorted(CONF.glob("*/*.yaml")):
        found.setdefault(path.parent.name, []).append(path.stem)
    return found


def help_text() -> str:
    parts = [HELP, "Groups, as +GROUP=NAME:"]
    for group, names in groups().items():
        parts.append(_fill(f"  {group:11}", ", ".join(names), 13))
    parts.append("\nMain settings; docs/configuration.md has all of them:")
    for key in MAIN:
        main = _setting(key, defaults()[key])
        parts += [f"  {key}={main.default}", _fill(" " * 6, main.meaning, 6)]
    return "\n".join([*parts, "", OPTIONS])


def _fill(first: str, text: str, indent: int) -> str:
    return fill(text, WIDTH, initial_indent=first, subsequent_indent=" " * indent)


def page(others: Mapping[str, str]) -> str:
    """docs/configuration.md; `others` has the defaults of Hugging Face's arguments, as shown."""
    from gistkit.paper import keys

    rows = [PAGE.rstrip("\n")]
    rows += [f"| `+{group}=` | {', '.join(names)} |" for group, names in groups().items()]
    section = ""
    for row in settings():
        if row.key.split(".")[0] != section:
            section = row.key.split(".")[0]
            rows.append(
                f"\n## {section}\n\n| key | default | meaning | published |\n|---|---|---|---|"
            )
        cells = (f"`{row.key}`", f"`{row.default}`", row.meaning, row.published)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    rows.append(REST.rstrip("\n"))
    for name, default in others.items():
        if f"training.{name}" not in defaults():
            note = f"no effect: {IGNORED[name]}" if name in IGNORED else ""
            rows.append(f"| `training.{name}` | {default} | {note} |")
    rows.append(OLD.rstrip("\n"))
    rows += [f"| `training.{old}` | `training.{new}` |" for old, new in keys.RENAMED.items()]
    rows += [f"| `training.{name}` | {today} |" for name, today in keys.REPLACED.items()]
    rows += [f"| `training.{name}` | no effect: {why} |" for name, why in keys.RETIRED.items()]
    return "\n".join(rows) + "\n"
