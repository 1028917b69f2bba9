"""`python -m gistkit.train` and `gistkit train`: the training entry.

    argv ── composing ──> checked settings ── Hydra ──> one job, or those of a sweep ──> run_config

Published usage: `python -m gistkit.train training.gist.num_gist_tokens=2 wandb.tag=mine`.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistkit.errors import DataError, GistkitError, MissingExtraError, OptionError
from gistkit.prompts import Example
from gistkit.training.composing import (
    check,
    explain,
    flags,
    parse_request,
    plain,
    register_defaults,
)
from gistkit.training.settings import CONF, help_text

if TYPE_CHECKING:
    from gistkit.training.arguments import TrainingConfig
    from gistkit.training.benchmarking import BenchmarkArguments


def main(argv: Sequence[str] | None = None) -> None:
    """Compose the configuration from `argv` (Hydra overrides) and run it.

    Raises:
        OptionError: a setting or an option that means nothing.
        GistkitError: what the run itself could not use.
    """
    try:
        import hydra
        from hydra.errors import HydraException
    except ImportError as error:
        raise MissingExtraError("hydra-core", "train") from error
    request = parse_request(sys.argv[1:] if argv is None else argv)
    if request.help:
        print(help_text(), end="")
        return
    register_defaults()
    check(request)
    failures: list[GistkitError] = []

    def job(config: Any) -> None:
        try:
            _run(config)
        except GistkitError as error:
            if "SUBMITIT_EXECUTOR" in os.environ:
                raise  # this process was started for the job; submitit tells the one that waits
            failures.append(error)

    entry = hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(job)
    with _as_process([*flags(request), *request.settings]):
        try:
            entry()
        except HydraException as error:
            raise explain(error) from error
    if failures:
        raise failures[0]


@contextmanager
def _as_process(argv: Sequence[str]) -> Iterator[None]:
    """Hydra reads its arguments from the process, and hands errors on only when told to."""
    before, flag = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = ["gistkit train", *argv], "1"
    try:
        yield
    finally:
        sys.argv = before
        if flag is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = flag


def run_config(raw: Mapping[str, Any]) -> dict[str, float]:
    """Run one composed configuration, given as a plain mapping; returns its results."""
    from gistkit.evaluation.answers import AnswerOptions
    from gistkit.evaluation.splits import SplitEvaluator
    from gistkit.training.arguments import TrainingConfig, parse_config
    from gistkit.training.benchmarking import parse_benchmarking
    from gistkit.training.job import run
    from gistkit.training.trainer import Evaluate

    def make_evaluate(
        splits: Mapping[str, Sequence[Example]], config: TrainingConfig, folder: Path
    ) -> Evaluate:
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

    config = parse_config(raw)
    benchmarking = parse_benchmarking(raw.get("training") or {})
    if benchmarking is None:
        return run(config, make_evaluate)
    without_evaluation = replace(config, hf={**config.hf, "do_eval": False})
    results = run(without_evaluation, make_evaluate) if config.hf.get("do_train") else {}
    return results | _benchmark(config, benchmarking)


def _benchmark(config: "TrainingConfig", asked: "BenchmarkArguments") -> dict[str, float]:
    """Write the published benchmark file of the human split; returns reductions in percent.

    Raises: as `benchmark_examples`; OptionError for neg_control, which keeps nothing of a prompt.
    """
    import torch

    from gistkit.model import GistModel
    from gistkit.models.inputs import move
    from gistkit.paper.benchmark import benchmark_examples
    from gistkit.training.start import check_trained, output_folder, read_splits, start_model

    condition = next(iter(config.gist.condition))
    if condition == "neg_control":
        raise OptionError("training.do_benchmarking: neg_control keeps nothing of a prompt")
    if os.environ.get("RANK", "0") != "0":
        return {}
    _, splits = read_splits(config)
    if not splits:
        raise DataError("there is no validation split to benchmark; give data.validation_file")
    human = splits.get("validation_human") or next(iter(splits.values()))
    if config.hf.get("do_train"):
        folder = output_folder(config)
        model = GistModel.from_pretrained(folder, dtype=config.model.dtype)
    else:
        check_trained(config)
        model = start_model(config, int(config.hf.get("seed") or 0))
    on_gpu = torch.cuda.is_available() and not config.hf.get("use_cpu")
    move(model.hf_model.eval(), torch.device("cuda" if on_gpu else "cpu"))
    return benchmark_examples(
        model,
        human[: asked.max_samples],
        Path(asked.output_file),
        k=config.gist.num_gist_tokens[0],
        instructions=asked.prompt_caching or condition == "pos_control",
        profiler=asked.profiler,
        sanity_checks=asked.sanity_checks,
    )


def _run(config: Any) -> None:
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # one for each file written; the run has its own
    results = run_config(plain(config))
    if os.environ.get("RANK", "0") != "0":
        return  # one process of several speaks
    for name, value in sorted(results.items()):
        print(f"{name:40} {value:.4f}" if isinstance(value, float) else f"{name:40} {value}")


if __name__ == "__main__":
    from gistkit.cli import main as command_line

    raise SystemExit(command_line(["train", *sys.argv[1:]]))
