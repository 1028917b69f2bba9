"""Measure over batch sizes and lengths of the instruction; the report of all that.

Prompts are random tokens of exact lengths: how long a pass takes does not depend on what they say.
"""

import json
import os
import platform
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from gistkit.benchmark.measure import measure
from gistkit.benchmark.modes import Prompts
from gistkit.errors import OptionError
from gistkit.files import write_text
from gistkit.model import GistModel

SCHEMA_VERSION = 1
LENGTHS = (16, 64, 256, 1024)
PACKAGES = ("gistkit", "torch", "transformers", "tokenizers", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is measured.

    Attributes:
        batch_sizes: prompts answered at once.
        instruction_tokens: lengths of the instruction; empty: those of `LENGTHS` that fit.
        input_tokens, new_tokens: lengths of the input and the answer.
        num_gist_tokens: k; None: the model's default.
        rounds, warmup: measured, and before that not measured.
        seed: of prompts, orders and intervals.
    """

    batch_sizes: tuple[int, ...] = (1, 8)
    instruction_tokens: tuple[int, ...] = ()
    input_tokens: int = 16
    new_tokens: int = 32
    num_gist_tokens: int | None = None
    rounds: int = 21
    warmup: int = 3
    seed: int = 0

    def lengths(self, model: GistModel, k: int) -> tuple[int, ...]:
        """Lengths of the instruction (raises OptionError where one does not fit)."""
        limit = model.adapter.max_positions
        rest = k + self.input_tokens + self.new_tokens

        def fits(length: int) -> bool:
            return limit is None or length + rest <= limit

        for length in self.instruction_tokens:
            if not fits(length):
                raise OptionError(
                    f"an instruction of {length} tokens and {rest} others are more than the "
                    f"{limit} this model can place; choose fewer"
                )
        found = self.instruction_tokens or tuple(filter(fits, LENGTHS))
        if not found:
            raise OptionError(
                f"{LENGTHS[0] + rest} tokens are more than the {limit} this model can place; "
                "choose a shorter instruction, input or answer"
            )
        return found


def sweep(
    model: GistModel,
    options: Options,
    *,
    done: Callable[[dict[str, Any]], None],
    started: Callable[[int], Callable[[], None]] = lambda rounds: lambda: None,
) -> None:
    """Measure all cells in a random order, so that a slow hour falls on no length alone.

    Args:
        done: is given each cell as soon as it is measured.
        started: is told how many rounds there are, and gives what to call after each.

    Raises:
        OptionError: a number below one or a length that does not fit.
    """
    k = model.check_k(options.num_gist_tokens, allow_untrained=True)
    cells = [(b, n) for b in options.batch_sizes for n in options.lengths(model, k)]
    random.Random(options.seed).shuffle(cells)
    between = started(len(cells) * (options.rounds + options.warmup))
    for number, (batch, length) in enumerate(cells):
        prompts = random_prompts(
            model, batch, length, options.input_tokens, k, seed=options.seed + number
        )
        done(
            measure(
                prompts,
                options.new_tokens,
                rounds=options.rounds,
                warmup=options.warmup,
                seed=options.seed,
                between=between,
            )
        )


def random_prompts(
    model: GistModel, batch: int, instruction: int, input: int, k: int, *, seed: int
) -> Prompts:
    """Prompts of random ordinary tokens, each with its gist tokens."""
    draw = random.Random(seed)
    special = {model.gist_id, *model.tokenizer.all_special_ids}
    ids = [i for i in range(min(len(model.tokenizer), model.gist_id)) if i not in special]

    def some(count: int) -> list[int]:
        return draw.choices(ids, k=count)

    return Prompts(
        model,
        [some(instruction) + [model.gist_id] * k for _ in range(batch)],
        [some(input) for _ in range(batch)],
        k,
    )


def report(
    model: GistModel, named: str, options: Options, cells: Sequence[dict[str, Any]], *, whole: bool
) -> dict[str, Any]:
    """Cells, in order of size, and all that is needed to repeat them, as JSON values."""
    ordered = sorted(cells, key=lambda cell: (cell["batch"], cell["instruction_tokens"]))
    return {
        "schema_version": SCHEMA_VERSION,
        "model": named,
        "model_type": model.hf_model.config.model_type,
        "parameters": sum(p.numel() for p in model.hf_model.parameters()),
        "fingerprint": model.fingerprint,
        "precision": str(model.hf_model.dtype).removeprefix("torch."),
        "device": _device(model.device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "config": asdict(options),
        "whole": whole,
        "cells": ordered,
    }


def write_json(result: dict[str, Any], folder: Path) -> Path:
    """Write `benchmark.json` (raises SaveError)."""
    return write_text(folder / "benchmark.json", json.dumps(result, indent=1) + "\n")


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"
