"""`gistkit benchmark`: what a gist saves on this machine, and whether it is exact."""

import os
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from gistkit.cli.compress import Device, Precision
from gistkit.cli.run import (
    ModelOptions,
    check_least,
    emit,
    progress_bar,
    quiet_libraries,
    refuse_given,
    say,
)

if TYPE_CHECKING:
    from gistkit.model import GistModel
    from gistkit.prompts import Example


class Profiler(StrEnum):
    """What counts FLOPs and times."""

    pytorch = "pytorch"
    deepspeed = "deepspeed"


class _RunByDefault(TyperGroup):
    """`gistkit benchmark MODEL` is `gistkit benchmark run MODEL`."""

    def parse_args(self, context: Any, arguments: list[str]) -> list[str]:
        if arguments and arguments[0] not in {*self.commands, "-h", "--help"}:
            arguments = ["run", *arguments]
        return super().parse_args(context, arguments)


benchmark = typer.Typer(
    name="benchmark",
    cls=_RunByDefault,
    help="Measure what gists save, check that they are exact, read reports.",
)


@benchmark.callback(invoke_without_command=True)
def _benchmark(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@benchmark.command()
def report(
    context: typer.Context,
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="CSV files of experiments.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write report.json, report.md and report.png here."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the intervals' bootstrap.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Report as one JSON object.")] = False,
) -> None:
    """Means, reductions and intervals of benchmark files, including the published ones.

    Files of gists and of instruction caches on the same prompts are also compared with each other.
    """
    from gistkit.benchmark.files import read_table
    from gistkit.benchmark.report import aggregate, to_markdown, write_report

    check_least(context, 0, "seed")
    result = aggregate([read_table(path) for path in files], seed=seed)
    emit(dumps(result) if json else to_markdown(result).rstrip())
    if out is not None:
        for path in write_report(result, out):
            say(f"wrote {path}")


Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="Folder or hub id; `toy` comes with gistkit."),
]
Base = Annotated[
    bool,
    typer.Option(
        "--base", help="MODEL is a plain model: add an untrained <GIST> to it, and use that."
    ),
]
Ks = Annotated[
    list[int] | None,
    typer.Option("--num-gist-tokens", "-k", metavar="K", help="Gist tokens; may be repeated."),
]


@benchmark.command()
def check(
    context: typer.Context,
    model: Model,
    base: Base = False,
    num_gist_tokens: Ks = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Check prompts from here (a file of examples, a folder of Alpaca+, `tasks`) "
            "instead of a few that come with gistkit.",
        ),
    ] = None,
    max_samples: Annotated[
        int, typer.Option(metavar="N", help="Prompts of --data, each of which is checked.")
    ] = 16,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", help="Greedy tokens of each answer.")
    ] = 8,
    precision: Annotated[Precision, typer.Option(help="Of the weights.")] = Precision.fp32,
    device: Annotated[Device, typer.Option(help="Auto: a GPU where there is one.")] = Device.auto,
    cache_dir: Annotated[str, typer.Option(metavar="DIR", help="Where downloads go.")] = ".cache",
    json: Annotated[bool, typer.Option("--json", help="Report as one JSON object.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show the libraries' messages on standard error.")
    ] = False,
) -> None:
    """Check that activations and answers are the same with the gist cache and without.

    Hidden states, keys and values of every layer, and greedy tokens; each k, prompts in one batch
    and alone. The first layer and token that differ are named; the exit status is 1 then.

    \b
    gistkit benchmark check toy --precision bf16
    """
    if data is None:
        refuse_given(context, "max_samples", why="needs --data")
    check_least(context, 1, "max_samples", "max_new_tokens", "num_gist_tokens")
    ks = tuple(num_gist_tokens or ())
    loaded = _load(context, ks)
    from gistkit.benchmark.sanity import PAIRS, report, to_text
    from gistkit.benchmark.sanity import check as check_gists

    pairs = PAIRS
    if data is not None:
        pairs = tuple((e.instruction, e.input) for e in _examples(data, max_samples))
    ks = ks or loaded.config.num_gist_tokens or (1,)
    checks = []
    with progress_bar() as progress:
        task = progress.add_task("checking", total=len(ks) * (1 + (len(pairs) > 1)))
        for found in check_gists(loaded, pairs, ks=ks, max_new_tokens=max_new_tokens):
            checks.append(found)
            progress.advance(task)
    result = report(loaded, checks, model)
    emit(dumps(result, ensure_ascii=False) if json else to_text(result))
    if not result["passed"]:
        raise typer.Exit(1)


@benchmark.command()
def run(
    context: typer.Context,
    model: Model,
    base: Base = False,
    num_gist_tokens: Annotated[
        int | None,
        typer.Option(
            "--num-gist-tokens", "-k", metavar="K", help="[default: the model's first trained one]"
        ),
    ] = None,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N", help="Prompts answered at once; may be repeated. [default: 1, 8]"
        ),
    ] = None,
    instruction_tokens: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            help="Length of the instruction; may be repeated. [default: 16, 64, 256, 1024 as far "
            "as they fit the model]",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Measure one pass over each of these prompts instead, as published: a file of "
            "examples, a folder of Alpaca+, or `tasks`.",
        ),
    ] = None,
    max_samples: Annotated[int, typer.Option(metavar="N", help="Prompts of --data at most.")] = 256,
    profiler: Annotated[Profiler, typer.Option(help="Of --data.")] = Profiler.pytorch,
    input_tokens: Annotated[int, typer.Option(metavar="N", help="Length of the input.")] = 16,
    new_tokens: Annotated[int, typer.Option(metavar="N", help="Length of the answer.")] = 32,
    rounds: Annotated[int, typer.Option(metavar="N", help="Rounds that count.")] = 21,
    warmup: Annotated[int, typer.Option(metavar="N", help="Rounds before those.")] = 3,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the report goes.")] = Path(
        "benchmark"
    ),
    precision: Annotated[Precision, typer.Option(help="Of the weights.")] = Precision.fp32,
    device: Annotated[Device, typer.Option(help="Auto: a GPU where there is one.")] = Device.auto,
    cache_dir: Annotated[str, typer.Option(metavar="DIR", help="Where downloads go.")] = ".cache",
    seed: Annotated[int, typer.Option(metavar="N", help="Of prompts, orders, intervals.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Report as one JSON object.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show the libraries' messages on standard error.")
    ] = False,
) -> None:
    """Measure no cache, cached instructions and gists side by side; `run` may be left out.

    Time to the first token and of decoding, tokens per second, FLOPs, memory, and after how many
    answers a cache has paid for itself; by batch size and length of the instruction.

    \b
    gistkit benchmark toy --batch-size 1 --instruction-tokens 64 --instruction-tokens 256
    gistkit benchmark toy --data tasks --max-samples 50
    """
    if data is None:
        refuse_given(context, "max_samples", "profiler", why="needs --data")
    else:
        refuse_given(
            context, "batch_size", "instruction_tokens", "input_tokens", "new_tokens", "rounds",
            "warmup", why="does not go with --data, which brings its own prompts",
        )  # fmt: skip
    check_least(
        context, 1, "max_samples", "input_tokens", "new_tokens", "rounds", "num_gist_tokens",
        "batch_size", "instruction_tokens",
    )  # fmt: skip
    check_least(context, 0, "warmup", "seed")
    loaded = _load(context, () if num_gist_tokens is None else (num_gist_tokens,))
    if data is not None:
        _run_examples(context, loaded, _examples(data, max_samples), out)
        return
    from gistkit.benchmark.sweep import Options, sweep
    from gistkit.benchmark.sweep_report import to_markdown

    options = Options(
        batch_sizes=tuple(dict.fromkeys(batch_size or (1, 8))),
        instruction_tokens=tuple(dict.fromkeys(instruction_tokens or ())),
        input_tokens=input_tokens,
        new_tokens=new_tokens,
        num_gist_tokens=num_gist_tokens,
        rounds=rounds,
        warmup=warmup,
        seed=seed,
    )
    cells: list[object] = []
    try:
        with progress_bar() as progress:

            def started(rounds: int) -> Callable[[], None]:
                return partial(progress.advance, progress.add_task("rounds", total=rounds))

            found = sweep(loaded, options, out, named=model, started=started, done=cells.append)
    except KeyboardInterrupt:
        if cells:
            say(f"stopped; {len(cells)} batches that were measured are in {out}")
        raise
    emit(dumps(found) if json else to_markdown(found).rstrip())
    for ending in ("json", "md", "png"):
        say(f"wrote {out / f'benchmark.{ending}'}")


def _run_examples(
    context: typer.Context, model: "GistModel", examples: "Sequence[Example]", out: Path
) -> None:
    given = context.params
    from gistkit.benchmark.examples import run_examples, write_examples
    from gistkit.benchmark.files import GIST, INSTRUCTION, STANDARD
    from gistkit.benchmark.report import aggregate, to_markdown, write_report
    from gistkit.report import new_figure

    new_figure(1, 1)  # complain before measuring that matplotlib is not installed
    cached = (INSTRUCTION, GIST) if model.adapter.can_cache_prompts else (GIST,)
    path, done = out / "benchmark.csv", 0
    with progress_bar() as progress:
        task = progress.add_task("examples", total=len(examples))

        def advance(number: int) -> None:
            nonlocal done
            done = number
            progress.update(task, completed=number)

        try:
            modes = (STANDARD, *cached)
            rows = run_examples(
                model,
                examples,
                k=given["num_gist_tokens"],
                modes=modes,
                profiler=given["profiler"],
                seed=given["seed"],
            )
            table = write_examples(path, rows, done=advance)
        except KeyboardInterrupt:
            say(f"stopped; {done} of {len(examples)} examples are saved in {path}")
            raise
    result = aggregate([table], seed=given["seed"])
    emit(dumps(result) if given["json"] else to_markdown(result).rstrip())
    for written in (path, *write_report(result, out)):
        say(f"wrote {written}")


def _load(context: typer.Context, ks: Sequence[int]) -> "GistModel":
    """The model of the command; `--base` adds `<GIST>` to a plain one."""
    given = context.params
    if not given["verbose"]:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler; it reads this once
    names = ("model", "precision", "device", "cache_dir")
    options = ModelOptions(**{name: given[name] for name in names})
    if not given["base"]:
        return options.load(verbose=given["verbose"])
    if not given["verbose"]:
        quiet_libraries()
    from gistkit.model import GistModel

    return GistModel.from_base(
        options.model, num_gist_tokens=ks or (1,), dtype=options.precision, device=options.device,
        cache_dir=options.cache_dir,
    )  # fmt: skip


def _examples(data: str, limit: int) -> "list[Example]":
    """Examples of all splits at a path, at most `limit` (raises DataError)."""
    from gistkit.evaluation.data import read_validation

    splits = read_validation(data, (), limit=limit)
    return [example for rows in splits.values() for example in rows][:limit]
