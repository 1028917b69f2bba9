"""The published benchmark that `training.do_benchmarking` asks for."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gistkit.benchmark.published import benchmark_examples
from gistkit.data.sets import read_splits
from gistkit.errors import DataError, OptionError
from gistkit.model import GistModel
from gistkit.models.inputs import move
from gistkit.paper.keys import parse_benchmarking
from gistkit.training.arguments import TrainingConfig
from gistkit.training.job import output_folder
from gistkit.training.start import check_trained, start_model


def benchmark_run(config: TrainingConfig, training: Mapping[str, Any]) -> dict[str, float]:
    """Write the published benchmark file of the human split; returns reductions in percent.

    Args:
        config: the run.
        training: its `training` section, with the published keys.

    Raises: as `benchmark_examples`; OptionError for neg_control, which keeps nothing of a prompt.
    """
    values = parse_benchmarking(training)
    assert values is not None
    condition = next(iter(config.gist.condition))
    if condition == "neg_control":
        raise OptionError("training.do_benchmarking: neg_control keeps nothing of a prompt")
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
        Path(values["benchmarking_output_file"]),
        k=config.gist.num_gist_tokens[0],
        instructions=bool(values["benchmarking_prompt_caching"]) or condition == "pos_control",
        profiler=values["benchmarking_profiler"],
        sanity_checks=bool(values["do_benchmarking_sanity_checks"]),
    )
