"""The published benchmark of a model: sanity checks, then the CSV of the published protocol."""

from collections.abc import Sequence
from pathlib import Path

from gistkit.benchmark.examples import Row, measure_examples
from gistkit.benchmark.files import GIST, INSTRUCTION, STANDARD
from gistkit.benchmark.report import aggregate
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
    """Write the published file.

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
    modes = (STANDARD, INSTRUCTION if instructions else GIST)
    written = measure_examples(
        model, examples, path, k=k, modes=modes, profiler=profiler, convert=as_published
    )
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

    What was kept then stands in both rows of the example, as published.
    """
    (kept,) = (row for row in rows if row["model"] != STANDARD)
    columns = ("effective_num_gist_tokens", "gist_index")
    published = {STANDARD: STANDARD, INSTRUCTION: GIST, GIST: GIST}
    return [
        {
            **row,
            **{name: kept[name] for name in columns},
            "model": published[row["model"]],
            "first_run": published[row["first_run"]],
        }
        for row in rows
    ]
