"""The published benchmark of a model: sanity checks, then the CSV of the published protocol."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gistkit.benchmark.examples import Row, run_examples, write_examples
from gistkit.benchmark.files import GIST, INSTRUCTION, STANDARD
from gistkit.benchmark.report import aggregate
from gistkit.benchmark.sanity import check
from gistkit.conditions import CONDITIONS, FULL_PROMPT, NO_PROMPT
from gistkit.data.sets import read_splits
from gistkit.errors import DataError, ModelError, OptionError
from gistkit.model import GistModel
from gistkit.models.inputs import move
from gistkit.paper.keys import parse_benchmarking
from gistkit.prompts import Example
from gistkit.training.arguments import TrainingConfig
from gistkit.training.job import output_folder
from gistkit.training.start import check_trained, start_model

CHECKED_AT_ONCE = 8


def benchmark_run(config: TrainingConfig, training: Mapping[str, Any]) -> dict[str, float]:
    """Write the published benchmark file of the human split; returns reductions in percent.

    `training` is the section of that name, with the published keys.
    """
    values = parse_benchmarking(training)
    assert values is not None
    condition = next(iter(config.gist.condition))
    mode = CONDITIONS[condition].mode
    if mode == NO_PROMPT:
        raise OptionError(f"training.do_benchmarking: {condition} caches nothing of a prompt")
    if os.environ.get("RANK", "0") != "0":
        return {}
    _, splits = read_splits(config.data)
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
        human[: values["max_benchmarking_samples"]],
        Path(str(values["benchmarking_output_file"])),
        k=config.gist.num_gist_tokens[0],
        instructions=bool(values["benchmarking_prompt_caching"]) or mode == FULL_PROMPT,
        profiler=values["benchmarking_profiler"],
        sanity_checks=bool(values["do_benchmarking_sanity_checks"]),
    )


def benchmark_examples(
    model: GistModel,
    examples: Sequence[Example],
    path: Path,
    *,
    k: int,
    instructions: bool = False,
    profiler: str = "pytorch",
    sanity_checks: bool = False,
) -> dict[str, float]:
    """Write the published file; returns reductions of mean costs in percent.

    Args:
        instructions: cache whole instructions instead of gists.
        profiler: "pytorch" or "deepspeed".
        sanity_checks: first check the examples with the gist cache and without.

    Raises:
        OptionError: this model cannot cache instructions.
        MissingExtraError: deepspeed is not installed.
        ModelError: a sanity check fails.
    """
    if sanity_checks:
        check_examples(model, examples, k=k)
    modes = (STANDARD, INSTRUCTION if instructions else GIST)
    measured = run_examples(model, examples, k=k, modes=modes, profiler=profiler)
    written = write_examples(path, measured, convert=as_published)
    ((_, found),) = aggregate([written])["files"][0]["modes"].items()
    return {
        f"benchmark_{cost}_reduction": paired["reduction"]
        for cost, paired in found["costs"].items()
        if paired["reduction"] is not None
    }


def check_examples(model: GistModel, examples: Sequence[Example], *, k: int) -> None:
    """Raise ModelError, with the first place that differs, where the gist cache is not exact."""
    for start in range(0, len(examples), CHECKED_AT_ONCE):
        batch = examples[start : start + CHECKED_AT_ONCE]
        for result in check(model, [(e.instruction, e.input) for e in batch], ks=[k]):
            if result.first is not None:
                raise ModelError(
                    f"the gist cache is not exact from example {start}: {result.first}"
                )


def as_published(rows: list[Row]) -> list[Row]:
    """Rows of an example with cached instructions under their published name, which is "gist".

    What was cached is then in both rows of the example, as published.
    """
    (cached,) = (row for row in rows if row["model"] != STANDARD)
    columns = ("effective_num_gist_tokens", "gist_index")
    published = {STANDARD: STANDARD, INSTRUCTION: GIST, GIST: GIST}
    return [
        {
            **row,
            **{name: cached[name] for name in columns},
            "model": published[row["model"]],
            "first_run": published[row["first_run"]],
        }
        for row in rows
    ]
