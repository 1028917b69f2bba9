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
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, Seq2SeqTrainingArguments, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from gisting.data.collate import Collator, Limits, TrainingRows, encode_and
from gisting.errors import DataError, OptionError
from gisting.files import write_text
from gisting.model import GistModel
from gisting.prompts import Example
from gisting.training.arguments import TrainingConfig
from gisting.training.start import output_folder, read_splits, start_model
from gisting.training.trainer import Evaluate, GistTrainer

MakeEvaluate = Callable[[Mapping[str, Sequence[Example]], TrainingConfig, Path], Evaluate]
SCHEMA_VERSION = 1
METRICS = ("loss", "rouge1", "rouge2", "rougeL", "rougeLsum", "exact_match", "gen_len")
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
        callbacks: more of the Trainer's callbacks.

    Raises:
        OptionError, DataError, ModelError: something in the config cannot be used.
    """
    folder = output_folder(config)
    args = config.training_arguments(folder)
    train, splits = read_splits(config)
    if args.do_train and not train:
        raise DataError("there are no rows to train on; give data.train_file or another data set")
    check_best_metric(args, splits)
    model = start_model(config, args.seed)
    model.config = dataclasses.replace(
        model.config,
        num_gist_tokens=config.gist.num_gist_tokens,
        conditions=tuple(config.gist.condition),
        training=_record(config, args.seed),
    )
    trainer = GistTrainer(
        model,
        make_evaluate(splits, config, folder) if splits else None,
        args=args,
        train_dataset=TrainingRows(train) if args.do_train else None,
        eval_dataset=[None] if splits else None,  # the Trainer wants one; ours reads `splits`
        data_collator=encode_and(make_collator(model, config, args.seed), model.encoder),
        in_order=config.in_order,
        callbacks=list(callbacks),
    )
    if callbacks:  # they say what happens; the Trainer's printer would say it again
        trainer.remove_callback(PrinterCallback)
    write_text(folder / "run.json", json.dumps(_run_file(config, args.seed), indent=2) + "\n")
    results: dict[str, float] = {}
    if args.do_train:
        if config.evaluate_before_train:
            trainer.evaluate()
        last = None if config.overwrite_output_dir else get_last_checkpoint(str(folder))
        if last is not None:
            log.warning("going on from %s", last)
        outcome = trainer.train(resume_from_checkpoint=last)
        if args.save_strategy != "no":
            trainer.save_model()
            trainer.save_state()
        results |= outcome.metrics
        trainer.save_metrics("train", outcome.metrics)
    if args.do_eval and splits:
        scores = trainer.evaluate()
        trainer.save_metrics("eval", scores)
        results |= scores
    return results


def check_best_metric(args: Seq2SeqTrainingArguments, splits: Mapping[str, object]) -> None:
    """Raise OptionError where the best checkpoint is to be chosen by a score nobody computes."""
    if not args.load_best_model_at_end:
        return
    short = [split.removeprefix("validation_") for split in splits]
    known = [f"{split}_{name}" for split in short for name in METRICS]
    name = (args.metric_for_best_model or "").removeprefix("eval_")
    if name not in known:
        raise OptionError(
            f"training.metric_for_best_model={name!r} is not computed; choose one of "
            f"{', '.join(known)}, or training.load_best_model_at_end=false"
        )


def make_collator(model: GistModel, config: TrainingConfig, seed: int) -> Collator:
    """The collator of a run: published limits, the run's k and conditions."""
    return Collator(
        gist_id=model.gist_id,
        pad_id=int(model.tokenizer.pad_token_id),
        num_gist_tokens=config.gist.num_gist_tokens,
        conditions=config.gist.condition,
        limits=Limits.for_split("train"),
        encoder_decoder=model.adapter.padding_side == "right",
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


def _run_file(config: TrainingConfig, seed: int) -> dict[str, Any]:
    packages = ("gisting", "torch", "transformers", "tokenizers", "accelerate")
    return {
        "schema_version": SCHEMA_VERSION,
        "seed": seed,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "config": json.loads(json.dumps(dataclasses.asdict(config), default=dict)),
    }
