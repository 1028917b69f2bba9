"""The published benchmark of a model: sanity checks, then the CSV of the published protocol."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gistkit.benchmark.aggregate import aggregate
from gistkit.benchmark.examples import as_published, run_examples
from gistkit.benchmark.rows import GIST, INSTRUCTION, STANDARD, read_table, write_rows
from gistkit.benchmark.sanity import check
from gistkit.errors import ModelError
from gistkit.model import GistModel
from gistkit.prompts import Example

CHECKED_AT_ONCE = 8


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
    """Write the published file, anew after each example, so that what was measured is kept.

    Args:
        k: gist tokens.
        instructions: cache whole instructions instead of gists.
        profiler: "pytorch" or "deepspeed".
        sanity_checks: first check the examples with the gist cache and without.

    Returns:
        Reductions of mean costs in percent: `benchmark_flops_reduction`, ...

    Raises:
        OptionError: this model cannot cache instructions.
        MissingExtraError: deepspeed is not installed.
        ModelError: a sanity check fails.
        PromptError: an example cannot be used.
        SaveError: the file cannot be written.
    """
    if sanity_checks:
        check_examples(model, examples, k=k)
    ways = (STANDARD, INSTRUCTION if instructions else GIST)
    rows: list[dict[str, Any]] = []
    for some in run_examples(model, examples, k=k, ways=ways, profiler=profiler):
        rows += as_published(some)
        write_rows(path, rows)
    (file,) = aggregate([read_table(path)])["files"]
    (way,) = file["ways"].values()
    return {
        f"benchmark_{cost}_reduction": found["reduction"]
        for cost, found in way["costs"].items()
        if found["reduction"] is not None
    }


def check_examples(model: GistModel, examples: Sequence[Example], *, k: int) -> None:
    """Raise ModelError, with the first place that differs, where the gist cache is not exact."""
    for start in range(0, len(examples), CHECKED_AT_ONCE):
        some = examples[start : start + CHECKED_AT_ONCE]
        for one in check(model, [(e.instruction, e.input) for e in some], ks=[k]):
            if one.first is not None:
                raise ModelError(f"the gist cache is not exact from example {start}: {one.first}")
