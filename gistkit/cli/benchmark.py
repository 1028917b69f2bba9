"""`gistkit benchmark`: what a gist saves on this machine, and whether it is exact."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gistkit.cli.compress import Device, Precision
from gistkit.cli.run import emit, refuse_given, say
from gistkit.errors import OptionError

SWEPT = (
    "batch_size", "instruction_tokens", "input_tokens", "new_tokens", "rounds", "warmup",
)  # fmt: skip
"""Options of a sweep alone."""


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
    """Means, reductions and intervals of benchmark files, the published ones among them.

    Files of gists and of instruction caches on the same prompts are also set against each other.
    """
    from json import dumps

    from gistkit.benchmark.aggregate import aggregate
    from gistkit.benchmark.rendering import to_markdown, write_report
    from gistkit.benchmark.rows import read_table

    if seed < 0:
        raise OptionError(f"--seed must be 0 or more, not {seed}")
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
        "--base", help="MODEL is a plain model: add <GIST> to it, untrained, and go on with that."
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
        bool, typer.Option("--verbose", help="Let the libraries speak, on standard error.")
    ] = False,
) -> None:
    """Check that activations and answers are the same with the gist cache and without.

    Hidden states, keys and values of every layer, and greedy tokens; each k, prompts in one batch
    and alone. The first layer and token that differ are named; the exit status is 1 then.

    \b
    gistkit benchmark check toy --precision bf16
    """
    from gistkit.cli.benchmark_model import check_model, load

    if data is None:
        refuse_given(context, "max_samples", why="needs --data")
    _at_least_one(("--max-samples", max_samples), ("--max-new-tokens", max_new_tokens))
    _at_least_one(*(("--num-gist-tokens", k) for k in num_gist_tokens or []))
    ks = tuple(num_gist_tokens or ())
    loaded = load(
        model, base=base, ks=ks, precision=precision.value, device=device.value,
        cache_dir=cache_dir, verbose=verbose,
    )  # fmt: skip
    passed = check_model(
        loaded, model, ks=ks, data=data, max_samples=max_samples, new=max_new_tokens, as_json=json
    )
    if not passed:
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
        bool, typer.Option("--verbose", help="Let the libraries speak, on standard error.")
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
        refuse_given(context, *SWEPT, why="does not go with --data, which brings its own prompts")
    _at_least_one(
        ("--max-samples", max_samples),
        ("--input-tokens", input_tokens),
        ("--new-tokens", new_tokens),
        ("--rounds", rounds),
        *(("--num-gist-tokens", k) for k in [num_gist_tokens] if k is not None),
        *(("--batch-size", n) for n in batch_size or []),
        *(("--instruction-tokens", n) for n in instruction_tokens or []),
    )
    for name, number in (("--warmup", warmup), ("--seed", seed)):
        if number < 0:
            raise OptionError(f"{name} must be 0 or more, not {number}")
    from gistkit.cli.benchmark_model import examples_of, load, sweep_model

    ks = () if num_gist_tokens is None else (num_gist_tokens,)
    loaded = load(
        model, base=base, ks=ks, precision=precision.value, device=device.value,
        cache_dir=cache_dir, verbose=verbose,
    )  # fmt: skip
    if data is not None:
        examples_of(
            loaded,
            data,
            out,
            k=num_gist_tokens,
            max_samples=max_samples,
            profiler=profiler.value,
            seed=seed,
            as_json=json,
        )
        return
    from gistkit.benchmark.sweep import Options

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
    sweep_model(loaded, model, options, out, as_json=json)


def _at_least_one(*numbers: tuple[str, int]) -> None:
    for name, number in numbers:
        if number < 1:
            raise OptionError(f"{name} must be at least 1, not {number}")
