"""Training with evaluation: what `gistkit train` and `python -m gistkit.train` run.

Published usage: `python -m gistkit.train training.gist.num_gist_tokens=2 wandb.tag=mine`.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistkit.prompts import Example
from gistkit.training.composing import launch

if TYPE_CHECKING:
    from gistkit.training.arguments import TrainingConfig
    from gistkit.training.trainer import Evaluate


def main(argv: Sequence[str] | None = None) -> None:
    """Compose the configuration from `argv` (default: the process's own) and run it."""
    launch(sys.argv[1:] if argv is None else argv, _run_and_print)


def run_config(raw: Mapping[str, Any]) -> dict[str, float]:
    """Run one composed configuration; returns its results (raises GistkitError)."""
    from gistkit.training.arguments import parse_config
    from gistkit.training.job import run

    config = parse_config(raw)
    if not (raw.get("training") or {}).get("do_benchmarking"):
        return run(config, make_evaluate)
    from gistkit.paper.benchmark import benchmark_run

    without_evaluation = replace(config, hf={**config.hf, "do_eval": False})
    results = run(without_evaluation, make_evaluate) if config.hf.get("do_train") else {}
    return results | benchmark_run(config, raw["training"])


def make_evaluate(
    splits: Mapping[str, Sequence[Example]], config: "TrainingConfig", folder: Path
) -> "Evaluate":
    from gistkit.evaluation.answers import AnswerOptions
    from gistkit.evaluation.splits import SplitEvaluator

    longest = int(config.hf.get("generation_max_length") or 128)
    options = AnswerOptions(
        condition=next(iter(config.gist.condition)),
        num_gist_tokens=config.gist.num_gist_tokens[0],
        batch_size=int(config.hf.get("per_device_eval_batch_size") or 8),
        max_new_tokens=longest,
        max_length=longest,
        num_beams=int(config.hf.get("generation_num_beams") or 1),
        path=config.evaluation.path,
    )
    return SplitEvaluator(splits, options, folder if config.write_outputs else None)


def _run_and_print(raw: dict[str, Any]) -> None:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # one per file written; the run has its own
    results = run_config(raw)
    if os.environ.get("RANK", "0") != "0":
        return  # the first process prints for all
    for name, value in sorted(results.items()):
        print(f"{name:40} {value:.4f}" if isinstance(value, float) else f"{name:40} {value}")
