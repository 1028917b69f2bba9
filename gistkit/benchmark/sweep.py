"""Measure over batch sizes and lengths of the instruction, on prompts of random tokens.

How long a pass takes does not depend on what the prompts say; random tokens have exact lengths.
"""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gistkit.benchmark.measure import measure
from gistkit.benchmark.prompts import Prompts
from gistkit.benchmark.sweep_report import write_json, write_sweep
from gistkit.errors import OptionError
from gistkit.model import GistModel
from gistkit.report import machine, new_figure, versions

SCHEMA_VERSION = 1
LENGTHS = (16, 64, 256, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is measured.

    Attributes:
        instruction_tokens: lengths of the instruction; empty: those of `LENGTHS` that fit.
        num_gist_tokens: k; None: the model's default.
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
    out: Path,
    *,
    named: str,
    started: Callable[[int], Callable[[], object]] = lambda rounds: lambda: None,
    done: Callable[[dict[str, Any]], object] = lambda cell: None,
) -> dict[str, Any]:
    """Measure all sizes in a random order, so that no length alone meets a slow period.

    Writes benchmark.json, whose content is returned, after each size; benchmark.md and
    benchmark.png at the end, and when the run is interrupted.

    Args:
        named: the model's name in the report.
        started: called with the number of rounds; returns a function that is called after each.
        done: called with the measurements of each size.

    Raises OptionError, MissingExtraError (matplotlib) and SaveError.
    """
    new_figure(1, 1)  # complain before measuring that matplotlib is not installed
    k = model.check_k(options.num_gist_tokens, allow_untrained=True)
    sizes = [(b, n) for b in options.batch_sizes for n in options.lengths(model, k)]
    random.Random(options.seed).shuffle(sizes)
    after_round = started(len(sizes) * (options.rounds + options.warmup))
    cells: list[dict[str, Any]] = []

    def result() -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "model": named,
            "model_type": model.hf_model.config.model_type,
            "parameters": sum(p.numel() for p in model.hf_model.parameters()),
            "fingerprint": model.fingerprint,
            "precision": str(model.hf_model.dtype).removeprefix("torch."),
            **machine(model.device),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "config": asdict(options),
            "whole": len(cells) == len(sizes),
            "cells": sorted(cells, key=lambda cell: (cell["batch"], cell["instruction_tokens"])),
        }

    try:
        for number, (batch, length) in enumerate(sizes):
            prompts = random_prompts(
                model, batch, length, options.input_tokens, k, seed=options.seed + number
            )
            cells.append(
                measure(
                    prompts,
                    options.new_tokens,
                    rounds=options.rounds,
                    warmup=options.warmup,
                    seed=options.seed,
                    after_round=after_round,
                )
            )
            write_json(result(), out)
            done(cells[-1])
    except KeyboardInterrupt:
        if cells:
            write_sweep(result(), out)
        raise
    found = result()
    write_sweep(found, out)
    return found


def random_prompts(
    model: GistModel, batch: int, instruction: int, input: int, k: int, *, seed: int
) -> Prompts:
    """Prompts of random ordinary tokens, each with its gist tokens."""
    rng = random.Random(seed)
    special = {model.gist_id, *model.tokenizer.all_special_ids}
    ids = [i for i in range(min(len(model.tokenizer), model.gist_id)) if i not in special]

    def tokens(count: int) -> list[int]:
        return rng.choices(ids, k=count)

    return Prompts(
        model,
        [tokens(instruction) + [model.gist_id] * k for _ in range(batch)],
        [tokens(input) for _ in range(batch)],
        k,
    )
