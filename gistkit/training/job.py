"""One training run, in three phases; each computes things once and hands them to the next.

    config ── open_run ──> Run      folder, Hugging Face's arguments, data, checkpoint; all refusals
           ── build ─────> Trainer  model, adapter, rows, collator
           ── fit ───────> results  train, save, evaluate

Files in the output folder, beside the Trainer's checkpoints: `train_results.json`,
`eval_results.json`, `all_results.json`, `run.json` (config, versions, seed), and the outputs.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from gistkit.data.collate import Batch, Collator, Limits, TrainingRows, encode_and
from gistkit.data.sets import read_splits
from gistkit.data.tokenized import TokenizedRows, tokenize_rows
from gistkit.errors import DataError, OptionError, SaveError
from gistkit.files import write_text
from gistkit.metrics import METRICS
from gistkit.model import GistModel
from gistkit.models import loading
from gistkit.prompts import Example
from gistkit.report import PACKAGES, versions
from gistkit.training import checkpoints
from gistkit.training.arguments import TrainingConfig
from gistkit.training.distributed import first_does, leave_at_exit, without_zero3
from gistkit.training.objectives import frozen, make_objective
from gistkit.training.reporting import reporting
from gistkit.training.safety import explained
from gistkit.training.shards import make_plain
from gistkit.training.start import add_adapter, check_trained, set_attention, start_model
from gistkit.training.trainer import Evaluate, GistTrainer

MakeEvaluate = Callable[[Mapping[str, Sequence[Example]], TrainingConfig, Path], Evaluate]
SCHEMA_VERSION = 1
RECORDED = ("max_steps", "num_train_epochs", "learning_rate", "per_device_train_batch_size",
            "gradient_accumulation_steps", "lr_scheduler_type")  # fmt: skip
log = logging.getLogger(__name__)


def run(
    config: TrainingConfig,
    make_evaluate: MakeEvaluate,
    *,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, float]:
    """Train and evaluate as configured; returns all scores and losses.

    A run that finds checkpoints in its output folder resumes from the last one, unless
    `training.overwrite_output_dir` is set.

    Args:
        make_evaluate: makes the function that scores a model on the validation splits.
        callbacks: more of the Trainer's callbacks; with some, no lines are printed.

    Raises:
        OptionError, DataError, ModelError: something in the config cannot be used.
        TrainingError: the loss is not a number, or memory ran out.
        SaveError: a checkpoint could not be written; older ones are complete.
    """
    with explained():
        opened = open_run(config)
        folder, first = opened.folder, opened.args.process_index == 0
        with reporting(config, folder, first_rank=first, lines=not callbacks) as reporters:
            evaluate = make_evaluate(opened.splits, config, folder) if opened.splits else None
            trainer = build(opened, evaluate, [*reporters, *callbacks])
            results = fit(opened, trainer)
    leave_at_exit()
    return results


@dataclass(frozen=True)
class Run:
    """What is known of a run before there is a model.

    `settings` is the configuration as `run.json` has it; `checkpoint` is where to resume from.
    """

    config: TrainingConfig
    settings: Mapping[str, Any]
    folder: Path
    args: Seq2SeqTrainingArguments
    train: Sequence[Example]
    splits: Mapping[str, Sequence[Example]]
    checkpoint: Path | None


def open_run(config: TrainingConfig) -> Run:
    """Read settings, folder and data, and refuse what cannot be run; changes nothing on disk."""
    folder = output_folder(config)
    args = config.training_arguments(folder)
    settings: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=dict))
    train, splits = read_splits(config.data)
    if args.do_train and not train:
        raise DataError("there are no rows to train on; give data.train_file or another data set")
    check_best_metric(args, splits)
    if not args.do_train:
        check_trained(config)
        return Run(config, settings, folder, args, train, splits, None)
    checkpoints.check_apart(folder, loading.resolve(config.model.model_name_or_path))
    checkpoint = checkpoints.resume_point(
        folder, settings, args.resume_from_checkpoint, overwrite=config.overwrite_output_dir
    )
    return Run(config, settings, folder, args, train, splits, checkpoint)


def output_folder(config: TrainingConfig) -> Path:
    default = f"exp/{config.wandb.group}/{config.wandb.name}"
    folder = Path(str(config.hf.get("output_dir") or default))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SaveError(
            f"training.output_dir: cannot create {folder}: {error.strerror}; choose another folder"
        ) from error
    return folder


def check_best_metric(args: Seq2SeqTrainingArguments, splits: Mapping[str, object]) -> None:
    """Raise OptionError if the best checkpoint is to be chosen by a score that is not computed.

    If none is chosen, such a score is dropped: the Trainer would look for it.
    """
    if not splits and args.load_best_model_at_end:
        raise OptionError(
            "there are no validation rows to choose the best checkpoint by; give "
            "data.validation_file, or training.load_best_model_at_end=false"
        )
    short = [split.removeprefix("validation_") for split in splits]
    known = [f"{split}_{name}" for split in short for name in METRICS]
    name = (args.metric_for_best_model or "").removeprefix("eval_")
    if name not in known and not args.load_best_model_at_end:
        args.metric_for_best_model = None
    elif name not in known:
        raise OptionError(
            f"training.metric_for_best_model={name!r} is not computed; choose one of "
            f"{', '.join(known)}, or training.load_best_model_at_end=false"
        )


def build(
    opened: Run, evaluate: Evaluate | None, callbacks: Sequence[TrainerCallback]
) -> GistTrainer:
    config, args = opened.config, opened.args
    with without_zero3(args):
        model = start_model(config, args.seed)
    set_attention(model, config.model.attention)
    model.config = dataclasses.replace(
        model.config,
        num_gist_tokens=config.gist.num_gist_tokens,
        conditions=tuple(config.gist.condition),
        training={
            "data": config.data.dataset_name,
            "seed": args.seed,
            "condition": dict(config.gist.condition),
            "pretrained": config.model.pretrained,
            **{key: config.hf[key] for key in RECORDED if key in config.hf},
        },
    )
    teaches = args.do_train and config.objective.get("teacher") == "start"
    start = frozen(model, args.device) if teaches else None
    adapted = add_adapter(model, config) if config.lora is not None and args.do_train else None
    rows, collate = training_rows(opened, model)
    trainer = GistTrainer(
        model,
        evaluate,
        args=args,
        train_dataset=rows if args.do_train else None,
        eval_dataset=[None] if opened.splits else None,  # the Trainer wants one
        data_collator=collate,
        objective=make_objective(config.objective),
        in_order=config.in_order,
        callbacks=list(callbacks),
        adapted=adapted,
        base=nullcontext if adapted is None else adapted.disable_adapter,
        start=start,
    )
    for display in (PrinterCallback, ProgressCallback):  # `reporting` has its own
        trainer.remove_callback(display)
    return trainer


def training_rows(
    opened: Run, model: GistModel
) -> tuple[TrainingRows | TokenizedRows, Callable[[list[Any]], Batch]]:
    config, args = opened.config, opened.args
    limits = Limits.for_split("train")
    encoder_decoder = model.adapter.padding_side == "right"
    room = limits.source if encoder_decoder else limits.total
    most = max(config.gist.num_gist_tokens)
    if most >= room:
        raise OptionError(
            f"training.gist.num_gist_tokens={most} does not fit rows of {room} tokens; choose fewer"
        )
    collate = Collator(
        gist_id=model.gist_id,
        pad_id=int(model.tokenizer.pad_token_id),
        num_gist_tokens=config.gist.num_gist_tokens,
        conditions=config.gist.condition,
        limits=limits,
        encoder_decoder=encoder_decoder,
        pack=config.packing,
        seed=args.seed,
    )
    if not (args.do_train and config.data.pretokenize):
        return TrainingRows(opened.train), encode_and(collate, model.encoder)
    folder = Path(config.model.cache_dir or ".cache") / "rows"
    with args.main_process_first(desc="tokenizing"):
        fresh = config.data.overwrite_cache and args.process_index == 0
        return tokenize_rows(opened.train, model.encoder, folder, overwrite=fresh), collate


def fit(opened: Run, trainer: GistTrainer) -> dict[str, float]:
    args = opened.args
    results: dict[str, float] = {}
    if trainer.is_world_process_zero():
        if args.do_train and args.resume_from_checkpoint is None:
            checkpoints.clear(opened.folder, everything=opened.config.overwrite_output_dir)
        if args.do_train or not (opened.folder / checkpoints.RUN_FILE).exists():
            write_run_file(opened)
    if args.do_train:
        results |= train_and_save(opened, trainer)
    if args.do_eval and opened.splits:
        if args.do_train and args.load_best_model_at_end and trainer.state.best_model_checkpoint:
            log.warning("these scores are of the best, %s", trainer.state.best_model_checkpoint)
        scores = trainer.evaluate()
        trainer.save_metrics("eval", scores)
        results |= scores
    return results


def write_run_file(opened: Run) -> None:
    content = {
        "schema_version": SCHEMA_VERSION,
        "seed": opened.args.seed,
        "versions": versions((*PACKAGES, "accelerate")),
        "config": opened.settings,
    }
    write_text(opened.folder / checkpoints.RUN_FILE, json.dumps(content, indent=2) + "\n")


def train_and_save(opened: Run, trainer: GistTrainer) -> dict[str, float]:
    """Train from the start or the checkpoint, and leave a plain model in the output folder."""
    config, args, checkpoint = opened.config, opened.args, opened.checkpoint
    evaluate_first = config.evaluate_before_train or args.eval_on_start
    args.eval_on_start = evaluate_first and checkpoint is None
    if checkpoint is not None:
        log.warning("resuming from %s", checkpoint)
    outcome = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if args.save_strategy == "no":
        log.warning("the trained model is not saved: training.save_strategy=no")
    else:
        merge = config.lora is not None and config.lora.merge
        if merge and (args.deepspeed or args.fsdp):
            log.warning("the adapter is saved on its own: sharded weights cannot be merged")
            merge = False
        if merge:
            trainer.save_merged()
        else:
            trainer.save_model()
            trainer.accelerator.wait_for_everyone()
            with without_zero3(args):
                first_does(lambda: make_plain(opened.folder))
        trainer.save_state()
    trainer.save_metrics("train", outcome.metrics)
    metrics: dict[str, float] = outcome.metrics
    return metrics
