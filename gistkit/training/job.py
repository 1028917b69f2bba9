"""One training run: start, train, save, evaluate, and write the results.

    config ── start ──> GistModel, rows ── GistTrainer ──> checkpoints ── evaluate ──> results

Files in the output folder, beside the Trainer's checkpoints: `train_results.json`,
`eval_results.json`, `all_results.json`, `run.json` (config, versions, seed), and the outputs.
"""

import dataclasses
import json
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import (
    PrinterCallback,
    ProgressCallback,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from gistkit.data.collate import Batch, Collator, Limits, TrainingRows, encode_and
from gistkit.data.tokenized import TokenizedRows, tokenize_rows
from gistkit.errors import DataError, OptionError
from gistkit.files import write_text
from gistkit.model import GistModel
from gistkit.models import loading
from gistkit.prompts import Example
from gistkit.training import checkpoints
from gistkit.training.arguments import TrainingConfig
from gistkit.training.distributed import first_does, leave_at_exit, without_zero3
from gistkit.training.lora import LoraArguments, add_adapter
from gistkit.training.objectives import frozen, make_objective
from gistkit.training.reporting import reporting
from gistkit.training.safety import explained
from gistkit.training.shards import make_plain
from gistkit.training.start import (
    check_trained,
    output_folder,
    read_splits,
    set_attention,
    start_model,
)
from gistkit.training.trainer import Evaluate, GistTrainer

MakeEvaluate = Callable[[Mapping[str, Sequence[Example]], TrainingConfig, Path], Evaluate]
SCHEMA_VERSION = 1
METRICS = (
    "loss", "perplexity", "rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match", "words",
    "gen_len",
)  # fmt: skip
log = logging.getLogger(__name__)


def run(
    config: TrainingConfig,
    make_evaluate: MakeEvaluate,
    *,
    callbacks: Sequence[TrainerCallback] = (),
) -> dict[str, float]:
    """Train and evaluate as configured; returns all scores and losses.

    A run that finds checkpoints in its output folder goes on from the last one, unless
    `training.overwrite_output_dir` is set.

    Args:
        config: the run.
        make_evaluate: makes the function that scores a model on the validation splits.
        callbacks: more of the Trainer's callbacks; with some, no lines are printed.

    Raises:
        OptionError, DataError, ModelError: something in the config cannot be used.
        TrainingError: the loss is no number, or memory ran out.
        SaveError: a checkpoint could not be written; older ones are whole.
    """
    folder = output_folder(config)
    args = config.training_arguments(folder)
    first = args.process_index == 0
    with (
        explained(),
        reporting(config, folder, first_rank=first, lines=not callbacks) as reporters,
    ):
        results = _run(config, make_evaluate, args, folder, [*reporters, *callbacks])
    leave_at_exit()
    return results


def _run(
    config: TrainingConfig,
    make_evaluate: MakeEvaluate,
    args: Seq2SeqTrainingArguments,
    folder: Path,
    callbacks: list[TrainerCallback],
) -> dict[str, float]:
    train, splits = read_splits(config)
    if args.do_train and not train:
        raise DataError("there are no rows to train on; give data.train_file or another data set")
    check_best_metric(args, splits)
    last = to_go_on_from(config, args, folder)
    if not args.do_train:
        check_trained(config)
    with without_zero3(args):
        model = start_model(config, args.seed)
    set_attention(model, config.model.attention)
    model.config = dataclasses.replace(
        model.config,
        num_gist_tokens=config.gist.num_gist_tokens,
        conditions=tuple(config.gist.condition),
        training=_record(config, args.seed),
    )
    teaches = args.do_train and config.objective.get("teacher") == "start"
    start = frozen(model, args.device) if teaches else None
    adapted = None
    if config.lora is not None and args.do_train:
        adapted = add_adapter(model, config.lora, config.model)
    rows, collate = training_rows(train, model, config, args)
    trainer = GistTrainer(
        model,
        make_evaluate(splits, config, folder) if splits else None,
        args=args,
        train_dataset=rows if args.do_train else None,
        eval_dataset=[None] if splits else None,  # the Trainer wants one; ours reads `splits`
        data_collator=collate,
        objective=make_objective(config.objective),
        in_order=config.in_order,
        callbacks=callbacks,
        adapted=adapted,
        base=nullcontext if adapted is None else adapted.disable_adapter,
        start=start,
    )
    for display in (PrinterCallback, ProgressCallback):  # ours says what happens
        trainer.remove_callback(display)
    if trainer.is_world_process_zero() and (args.do_train or not (folder / "run.json").exists()):
        made = run_settings(config)
        write_text(folder / "run.json", json.dumps(_run_file(made, args.seed), indent=2) + "\n")
    results: dict[str, float] = {}
    if args.do_train:
        first = config.evaluate_before_train or args.eval_on_start
        args.eval_on_start = first and last is None
        if last is not None:
            log.warning("going on from %s", last)
        outcome = trainer.train(resume_from_checkpoint=None if last is None else str(last))
        if args.save_strategy == "no":
            log.warning("the trained model is not kept: training.save_strategy=no")
        else:
            if adapted is not None and merges(config.lora, args):
                trainer.save_merged(adapted)
            else:
                trainer.save_model()
                trainer.accelerator.wait_for_everyone()
                with without_zero3(args):
                    first_does(lambda: make_plain(folder))
            trainer.save_state()
        results |= outcome.metrics
        trainer.save_metrics("train", outcome.metrics)
    if args.do_eval and splits:
        if args.do_train and args.load_best_model_at_end and trainer.state.best_model_checkpoint:
            log.warning("what follows is of the best, %s", trainer.state.best_model_checkpoint)
        scores = trainer.evaluate()
        trainer.save_metrics("eval", scores)
        results |= scores
    return results


def to_go_on_from(
    config: TrainingConfig, args: Seq2SeqTrainingArguments, folder: Path
) -> Path | None:
    """The checkpoint to go on from; half-written ones are removed, and all when starting anew.

    Raises:
        OptionError: the checkpoints were made with other settings, or have no optimizer, or the
            one given is not whole; the folder holds the model to start from, or one of no run.
    """
    if not args.do_train:
        return None
    checkpoints.check_apart(folder, loading.resolve(config.model.model_name_or_path))
    given = args.resume_from_checkpoint
    if given is not None:
        if isinstance(given, bool) or checkpoints.read_seal(Path(given)) is None:
            raise OptionError(
                f"training.resume_from_checkpoint={given} is no whole checkpoint; give a "
                "checkpoint-N folder, or leave it out to go on from the last"
            )
        checkpoints.check_same_run(Path(given).parent, run_settings(config))
        check_optimizer(Path(given))
        return Path(given)
    if not config.overwrite_output_dir:
        checkpoints.check_same_run(folder, run_settings(config))
    last = None if config.overwrite_output_dir else checkpoints.last_whole(folder)
    if last is not None:
        check_optimizer(last)
    if args.process_index == 0:
        checkpoints.clear(folder, everything=config.overwrite_output_dir)
    return last


def check_optimizer(checkpoint: Path) -> None:
    """Raise OptionError where a run that went on from there would be another one."""
    if not checkpoints.has_optimizer(checkpoint):
        raise OptionError(
            f"{checkpoint} was saved without its optimizer (training.save_only_model); choose "
            "another training.output_dir, or start anew with training.overwrite_output_dir=true"
        )


def merges(lora: LoraArguments | None, args: Seq2SeqTrainingArguments) -> bool:
    """Whether an adapter goes into the weights at the end; sharded weights cannot take it."""
    sharded = bool(args.deepspeed or args.fsdp)
    if lora is not None and lora.merge and sharded:
        log.warning("the adapter is saved apart: weights in shards cannot be merged")
    return lora is not None and lora.merge and not sharded


def run_settings(config: TrainingConfig) -> dict[str, Any]:
    """The configuration as `run.json` keeps it."""
    made: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config), default=dict))
    return made


def check_best_metric(args: Seq2SeqTrainingArguments, splits: Mapping[str, object]) -> None:
    """Raise OptionError where the best checkpoint is to be chosen by a score nobody computes.

    Where none is chosen, such a score is forgotten: the Trainer would look for it.
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


def training_rows(
    train: Sequence[Example],
    model: GistModel,
    config: TrainingConfig,
    args: Seq2SeqTrainingArguments,
) -> tuple[TrainingRows | TokenizedRows, Callable[[list[Any]], Batch]]:
    """The rows to learn from, and what makes batches of them: tokenized beforehand, or then."""
    collate = make_collator(model, config, args.seed)
    if not (args.do_train and config.data.pretokenize):
        return TrainingRows(train), encode_and(collate, model.encoder)
    folder = Path(config.model.cache_dir or ".cache") / "rows"
    with args.main_process_first(desc="tokenizing"):
        fresh = config.data.overwrite_cache and args.process_index == 0
        return tokenize_rows(train, model.encoder, folder, overwrite=fresh), collate


def make_collator(model: GistModel, config: TrainingConfig, seed: int) -> Collator:
    """The collator of a run: published limits, the run's k and conditions.

    Raises:
        OptionError: a k that leaves no room in a row for anything else.
    """
    limits = Limits.for_split("train")
    encoder_decoder = model.adapter.padding_side == "right"
    room = limits.source if encoder_decoder else limits.total
    most = max(config.gist.num_gist_tokens)
    if most >= room:
        raise OptionError(
            f"training.gist.num_gist_tokens={most} does not fit rows of {room} tokens; choose fewer"
        )
    return Collator(
        gist_id=model.gist_id,
        pad_id=int(model.tokenizer.pad_token_id),
        num_gist_tokens=config.gist.num_gist_tokens,
        conditions=config.gist.condition,
        limits=limits,
        encoder_decoder=encoder_decoder,
        pack=config.packing,
        seed=seed,
    )


def _record(config: TrainingConfig, seed: int) -> dict[str, Any]:
    keys = ("max_steps", "num_train_epochs", "learning_rate", "per_device_train_batch_size",
            "gradient_accumulation_steps", "lr_scheduler_type")  # fmt: skip
    return {
        "data": config.data.dataset_name,
        "seed": seed,
        "condition": dict(config.gist.condition),
        "pretrained": config.model.pretrained,
        **{key: config.hf[key] for key in keys if key in config.hf},
    }


def _run_file(settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    packages = ("gistkit", "torch", "transformers", "tokenizers", "accelerate")
    return {
        "schema_version": SCHEMA_VERSION,
        "seed": seed,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "config": settings,
    }
