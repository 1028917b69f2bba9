"""What `gistkit benchmark` does with a model: loads it, checks it, measures it."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistkit.cli.run import emit, progress_bar, quiet_libraries, say

if TYPE_CHECKING:
    from gistkit.benchmark.sweep import Options
    from gistkit.model import GistModel


def load(
    named: str,
    *,
    base: bool,
    ks: Sequence[int],
    precision: str,
    device: str,
    cache_dir: str,
    verbose: bool,
) -> "GistModel":
    """The model; `base` adds `<GIST>` to a plain one (raises ModelError, OptionError)."""
    if not verbose:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler; it reads this once
        quiet_libraries()
    from gistkit.model import GistModel

    given: dict[str, Any] = {
        "dtype": precision,
        "device": device,
        "cache_dir": cache_dir,
    }
    if base:
        return GistModel.from_base(named, num_gist_tokens=ks or (1,), **given)
    return GistModel.from_pretrained(named, **given)


def check_model(
    model: "GistModel",
    named: str,
    *,
    ks: Sequence[int],
    data: str | None,
    max_samples: int,
    new: int,
    as_json: bool,
) -> bool:
    """Print the sanity checks; returns whether all passed.

    Raises:
        DataError, PromptError: the prompts cannot be used.
    """
    from gistkit.benchmark.sanity import PAIRS, check, report

    pairs = PAIRS if data is None else prompts_of(data, max_samples)
    ks = ks or model.config.num_gist_tokens or (1,)
    checks = []
    with progress_bar() as progress:
        task = progress.add_task("checking", total=len(ks) * (1 + (len(pairs) > 1)))
        for one in check(model, pairs, ks=ks, max_new_tokens=new):
            checks.append(one)
            progress.advance(task)
    found = report(model, checks, named)
    if as_json:
        emit(dumps(found, ensure_ascii=False))
        return bool(found["passed"])
    for k in ks:
        mine = [one for one in checks if one.k == k]
        worst = max(value for one in mine for value in one.worst.values())
        wrong = [f"FAILED: {one.first}" for one in mine if one.first is not None]
        told = "; ".join(wrong[:1]) or "passed"
        tokens, ties = (sum(getattr(one, name) for one in mine) for name in ("tokens", "ties"))
        emit(
            f"k = {k}, {found['precision']}: at most {worst:.3g} roundings apart; {tokens} greedy "
            f"tokens, {ties} of them ties: {told}"
        )
    return bool(found["passed"])


def prompts_of(data: str, limit: int) -> list[tuple[str, str]]:
    """Instructions and inputs of all splits at a path, at most `limit` (raises DataError)."""
    from gistkit.evaluation.data import read_validation

    splits = read_validation(data, (), limit=limit)
    pairs = [(one.instruction, one.input) for rows in splits.values() for one in rows]
    return pairs[:limit]


def sweep_model(
    model: "GistModel", named: str, options: "Options", out: Path, *, as_json: bool
) -> None:
    """Measure, write and print.

    Raises:
        OptionError: a length does not fit the model.
        KeyboardInterrupt: Ctrl-C; the cells that were measured are written.
    """
    from gistkit.benchmark.rendering import new_figure
    from gistkit.benchmark.sweep import report, sweep, write_json
    from gistkit.benchmark.sweep_rendering import to_markdown, write_sweep

    new_figure(1, 1)  # complain before measuring that matplotlib is not installed
    cells: list[dict[str, Any]] = []

    def result(*, whole: bool) -> dict[str, Any]:
        return report(model, named, options, cells, whole=whole)

    def done(cell: dict[str, Any]) -> None:
        cells.append(cell)
        write_json(result(whole=False), out)

    try:
        with progress_bar() as progress:

            def started(rounds: int) -> Callable[[], None]:
                return partial(progress.advance, progress.add_task("rounds", total=rounds))

            sweep(model, options, done=done, started=started)
    except KeyboardInterrupt:
        if cells:
            write_sweep(result(whole=False), out)
            say(f"stopped; {len(cells)} batches that were measured are in {out}")
        raise
    found = result(whole=True)
    written = write_sweep(found, out)
    emit(dumps(found) if as_json else to_markdown(found).rstrip())
    for path in written:
        say(f"wrote {path}")


def examples_of(
    model: "GistModel",
    data: str,
    out: Path,
    *,
    k: int | None,
    max_samples: int,
    profiler: str,
    seed: int,
    as_json: bool,
) -> None:
    """Measure real prompts by the published protocol, in all ways; write and print the report.

    Raises:
        DataError, PromptError: the examples cannot be used.
        MissingExtraError: matplotlib or deepspeed is not installed.
        KeyboardInterrupt: Ctrl-C; the examples that were measured are written.
    """
    from gistkit.benchmark.aggregate import aggregate
    from gistkit.benchmark.examples import run_examples
    from gistkit.benchmark.rendering import new_figure, to_markdown, write_report
    from gistkit.benchmark.rows import GIST, INSTRUCTION, STANDARD, read_table, write_rows
    from gistkit.prompts import Example

    new_figure(1, 1)  # complain before measuring that matplotlib is not installed
    examples = [Example(*pair) for pair in prompts_of(data, max_samples)]
    cached = (INSTRUCTION, GIST) if model.adapter.can_cache_prompts else (GIST,)
    rows: list[dict[str, Any]] = []
    path = out / "benchmark.csv"
    with progress_bar() as progress:
        task = progress.add_task("examples", total=len(examples))
        try:
            for some in run_examples(
                model, examples, k=k, ways=(STANDARD, *cached), profiler=profiler, seed=seed
            ):
                rows += some
                write_rows(path, rows)
                progress.advance(task)
        except KeyboardInterrupt:
            done = len({row["id"] for row in rows})
            say(f"stopped; {done} of {len(examples)} examples are kept in {path}")
            raise
    result = aggregate([read_table(path)], seed=seed)
    emit(dumps(result) if as_json else to_markdown(result).rstrip())
    for written in (path, *write_report(result, out)):
        say(f"wrote {written}")
