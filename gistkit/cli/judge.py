"""`gistkit judge`: let a language model compare answers, and report its verdicts."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gistkit.cli.run import emit, progress_bar, say
from gistkit.errors import JudgeError, OptionError
from gistkit.report import interval

if TYPE_CHECKING:
    from gistkit.evaluation.judge.results import Verdicts
    from gistkit.evaluation.judge.run import JudgeOptions, JudgeRun

WIDTH = 180  # of tables that go to a file
LISTED = 5  # failures that are shown
_SPLIT = re.compile(r"validation_([a-z]+)")

judge = typer.Typer(name="judge", no_args_is_help=False)

Model = Annotated[str, typer.Option(metavar="NAME", help="The judge.")]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Of the endpoint; also OPENAI_BASE_URL. [default: OpenAI's own]"
    ),
]
ApiKeyEnv = Annotated[
    str, typer.Option(metavar="VAR", help="The environment variable that holds the API key.")
]
Seed = Annotated[int, typer.Option(metavar="N", help="Decides which answer is shown first.")]
BothOrders = Annotated[
    bool,
    typer.Option(
        "--both-orders", help="Judge each pair in both orders; if verdicts differ, it is a tie."
    ),
]
Temperature = Annotated[float, typer.Option(metavar="T", help="Of the judge.")]
MaxTokens = Annotated[
    int | None, typer.Option(metavar="N", help="Longest verdict. [default: the endpoint's]")
]
Structured = Annotated[
    bool, typer.Option(help="Send a JSON schema; dropped if the endpoint refuses it.")
]
Concurrency = Annotated[int, typer.Option(metavar="N", help="Requests at once.")]
Timeout = Annotated[float, typer.Option(metavar="S", help="Seconds for one request.")]
Retries = Annotated[int, typer.Option(metavar="N", help="Further requests after a failed one.")]
Backoff = Annotated[
    float,
    typer.Option(
        metavar="S", help="Seconds to wait after an error; doubles. Retry-After takes precedence."
    ),
]
InputPrice = Annotated[
    float | None,
    typer.Option(
        metavar="USD",
        help="Per million prompt tokens. [default: the published rate for the default model]",
    ),
]
OutputPrice = Annotated[
    float | None, typer.Option(metavar="USD", help="Per million completion tokens.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only count requests and tokens.")]
Json = Annotated[bool, typer.Option("--json", help="Report as one JSON object.")]
Force = Annotated[
    bool, typer.Option("--force", help="Start over where a results file is already there.")
]

MODEL = "gpt-3.5-turbo"


@judge.callback(invoke_without_command=True)
def judge_files(
    context: typer.Context,
    a: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Answers: CSV (x,y_pred,y_true).")
    ] = None,
    a_name: Annotated[str, typer.Option(metavar="NAME", help="What to call them.")] = "a",
    b: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Other answers to the same examples.")
    ] = None,
    b_name: Annotated[str, typer.Option(metavar="NAME", help="What to call them.")] = "b",
    results_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON of verdicts, as published.")
    ] = None,
    n: Annotated[
        int, typer.Option("--n", metavar="N", help="Judge the first N pairs; 0: all.")
    ] = 256,
    seed: Seed = 42,
    both_orders: BothOrders = False,
    model: Model = MODEL,
    base_url: BaseUrl = None,
    api_key_env: ApiKeyEnv = "OPENAI_API_KEY",
    temperature: Temperature = 0.0,
    max_tokens: MaxTokens = None,
    structured: Structured = True,
    concurrency: Concurrency = 8,
    timeout: Timeout = 60.0,
    retries: Retries = 5,
    backoff: Backoff = 1.0,
    input_price: InputPrice = None,
    output_price: OutputPrice = None,
    dry_run: DryRun = False,
    json: Json = False,
    force: Force = False,
) -> None:
    """Let a language model choose between two models' answers, pair by pair.

    Any endpoint that speaks OpenAI's chat API. Every verdict is saved at once: after Ctrl-C or an
    error rerun the same command to judge the remaining pairs. Pairs without a verdict are listed;
    they are not counted, and are never ties.

    \b
    gistkit judge --a gist.csv --a_name gist --b full.csv --b_name full --results_file gist.json
    gistkit judge report gist.json
    gistkit judge all data/results/model_outputs --out data/results/chatgpt
    """
    if context.invoked_subcommand is not None:
        return
    if a is None or b is None or results_file is None:
        raise OptionError("nothing to judge: give --a FILE, --b FILE and --results_file FILE")
    from gistkit.evaluation.judge.pairs import read_pairs
    from gistkit.evaluation.judge.run import JudgeRun

    names = (a_name, b_name)
    options = _options(context)
    pairs = read_pairs(a, b, names)
    if len(pairs) > n > 0:
        say(f"judging the first {n} of {len(pairs)} pairs (--n 0 for all)")
    run = JudgeRun(options, pairs, names, results_file, force=force)
    if dry_run:
        _print_plans({str(results_file): run.plan()}, as_json=json, example=run)
        return
    _print_verdicts({str(results_file): _judge(run, "judging")}, as_json=json)
    _check_failures([run])


@judge.command("all")
def judge_all(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Holds MODEL-gist-1/outputs-3000-*.csv and so on.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the results files go.")],
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A folder or a model; may be repeated. [default: all]"),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="seen, unseen, human; may be repeated. [default: all]"),
    ] = None,
    n: Annotated[int, typer.Option("--n", metavar="N", help="Pairs of each; 0: all.")] = 0,
    seed: Seed = 42,
    both_orders: BothOrders = False,
    model: Model = MODEL,
    base_url: BaseUrl = None,
    api_key_env: ApiKeyEnv = "OPENAI_API_KEY",
    temperature: Temperature = 0.0,
    max_tokens: MaxTokens = None,
    structured: Structured = True,
    concurrency: Concurrency = 8,
    timeout: Timeout = 60.0,
    retries: Retries = 5,
    backoff: Backoff = 1.0,
    input_price: InputPrice = None,
    output_price: OutputPrice = None,
    dry_run: DryRun = False,
    json: Json = False,
    force: Force = False,
) -> None:
    """Judge every model, k and split against its positive control, as published.

    Comparisons whose results file is complete are skipped, the published ones too (also .json.gz).
    """
    from gistkit.evaluation.judge.run import JudgeRun
    from gistkit.paper.judge_sweep import sweep

    found: dict[str, Verdicts] = {}
    plans: dict[str, Mapping[str, Any]] = {}
    runs: list[JudgeRun] = []
    options = _options(context)
    selected = {"names": only or (), "splits": split or ()}
    for file, comparison in sweep(options, folder, out, force=force, **selected):
        if not isinstance(comparison, JudgeRun):
            found[file] = comparison
        elif dry_run:
            plans[file] = comparison.plan()
        else:
            found[file] = _judge(comparison, " vs ".join(comparison.journal.names))
            runs.append(comparison)
    if dry_run:
        _print_plans(plans, as_json=json, complete=len(found))
        return
    _print_verdicts(found, as_json=json)
    _check_failures(runs)


@judge.command()
def report(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Results files; also .gz, .xz.")
    ],
    json: Json = False,
) -> None:
    """Wins, ties and losses with exact intervals; position bias; agreement between judges.

    Intervals are Clopper and Pearson's, 95 %. Files that judge the same pairs are compared by
    Cohen's kappa. If the scores stored in a file differ from its verdicts, both are shown.
    """
    from gistkit.evaluation.judge.results import report as report_on

    found = report_on(files)
    if json:
        emit(dumps(found, ensure_ascii=False))
        return
    _print_tallies(found["files"])
    _print_agreement(found["agreement"])


def _options(context: typer.Context) -> "JudgeOptions":
    """From the parameters of the command that runs, which have the same names."""
    from gistkit.evaluation.judge.run import JudgeOptions

    given = context.params
    return JudgeOptions(**{field.name: given[field.name] for field in fields(JudgeOptions)})


def _judge(run: "JudgeRun", what: str) -> "Verdicts":
    total, left = len(run.questions), len(run.left)
    try:
        with progress_bar() as progress:
            task = progress.add_task(what, total=total, completed=total - left)
            return run.judge(lambda: progress.advance(task))
    except BaseException:
        if len(run.left) < left:
            done = total - len(run.left)
            say(
                f"stopped; {done} of {total} verdicts are saved in {run.journal.path}; "
                "rerun the same command to resume"
            )
        raise


def _check_failures(runs: "Sequence[JudgeRun]") -> None:
    """Raise JudgeError if a pair has no verdict; the first reasons are printed."""
    failures = [
        f"{run.journal.path.name} row {row + 1}: {why}"
        for run in runs
        for row, why in run.journal.failures(run.questions).items()
    ]
    for line in failures[:LISTED]:
        say(line)
    if failures:
        raise JudgeError(
            f"{len(failures)} pairs have no verdict (see failures in the results file); rerun the "
            "same command to ask them again"
        )


def _print_plans(
    plans: Mapping[str, Mapping[str, Any]],
    *,
    as_json: bool,
    example: "JudgeRun | None" = None,
    complete: int = 0,
) -> None:
    from gistkit.evaluation.judge.prompt import messages
    from gistkit.evaluation.judge.results import SCHEMA_VERSION

    if as_json:
        emit(dumps({"schema_version": SCHEMA_VERSION, "plan": plans, "complete": complete}))
        return
    if example is not None and example.questions:
        for part in messages(example.questions[0]):
            emit(f"--- {part['role']}\n{part['content']}")
        emit("---")
    for file, plan in plans.items():
        emit(f"{file}: {plan['requests']} requests, {plan['judged']} judged already")
    tokens = sum(plan["prompt_tokens"] for plan in plans.values())
    costs = [plan["estimated_cost"] for plan in plans.values()]
    price = "price unknown (--input-price, --output-price)"
    if None not in costs:
        price = f"about ${sum(costs):.2f}"
    emit(
        f"in all {sum(plan['requests'] for plan in plans.values())} requests, about {tokens:,} "
        f"prompt tokens, {price}; nothing was sent"
        + (f"; {complete} comparisons are complete" if complete else "")
    )


def _print_verdicts(found: "Mapping[str, Verdicts]", *, as_json: bool) -> None:
    from gistkit.evaluation.judge.results import SCHEMA_VERSION, summary

    reports = [summary(file, verdicts) for file, verdicts in found.items()]
    if as_json:
        emit(dumps({"schema_version": SCHEMA_VERSION, "files": reports}, ensure_ascii=False))
    else:
        _print_tallies(reports)


def _print_tallies(reports: Sequence[Mapping[str, Any]]) -> None:
    """Wins, ties and losses, a line a file; then remarks."""
    from rich.text import Text

    table, console = _table()
    wide = console.width >= 150
    for name in ("A", "B", "split", "n", "A wins [%]", "ties [%]", "B wins [%]", "win rate"):
        table.add_column(name, overflow="fold", no_wrap=wide and name not in "AB")
    for name in ("A of decided", "p", "1st : 2nd", "stored"):
        table.add_column(name, no_wrap=wide)
    for report in reports:
        split = _SPLIT.search(report["file"])
        position = report["position"]
        share = report["decided"]["percent"]
        table.add_row(
            Text(report["a"]),
            Text(report["b"]),
            split[1] if split else "",
            str(report["rows"]),
            *(
                "{} [{:.1f}, {:.1f}]".format(report[name]["count"], *report[name]["interval"])
                for name in ("wins", "ties", "losses")
            ),
            f"{report['win_rate']:.2f}",
            "-" if share is None else interval(share, report["decided"]["interval"]),
            f"{report['sign_test']:.2g}",
            f"{position['first']} : {position['second']}",
            _stored(report),
        )
    console.print(table)
    for report in reports:
        for line in _remarks(report):
            console.print(Text(f"{Path(report['file']).name}: {line}"), soft_wrap=True)


def _stored(report: Mapping[str, Any]) -> str:
    if report["stored"] is None:
        return "-"
    return f"{report['stored'][0]:g}" + (
        f" ≠ {report['points'][0]:g}" if report["stored_differs"] else ""
    )


def _remarks(report: Mapping[str, Any]) -> list[str]:
    lines = []
    if report["stored_differs"]:
        by_hand = report["read_by_hand"]
        lines.append(
            f"stored scores {report['stored'][0]:g} : {report['stored'][1]:g}, its verdicts give "
            f"{report['points'][0]:g} : {report['points'][1]:g}"
            + (f"; {by_hand} verdicts were read by hand" if by_hand else "")
        )
    if report["failures"]:
        a, b = report["points_as_published"]
        lines.append(
            f"{report['failures']} rows without a verdict; counted as ties, as published: "
            f"{a:g} : {b:g} instead of {report['points'][0]:g} : {report['points'][1]:g}"
        )
    position = report["position"]
    if position["both_orders"]:
        lines.append(
            f"both orders: {position['consistent']} of {position['both_orders']} rows have the "
            f"same verdict; the answer shown first won {position['percent'] or 0:.1f} % of decided "
            "verdicts"
        )
    if report["usage"]:
        usage, cost = report["usage"], report["estimated_cost"]
        lines.append(
            f"{usage['requests']} requests, {usage['prompt_tokens']:,} + "
            f"{usage['completion_tokens']:,} tokens, "
            + ("price unknown" if cost is None else f"${cost:.4f}")
        )
    return lines


def _print_agreement(pairs: Sequence[Mapping[str, Any]]) -> None:
    """Agreement between judges, a line every two files; nothing where none share pairs."""
    if not pairs:
        return
    from rich.text import Text

    table, console = _table("agreement between judges")
    for name in ("files", "n", "agreed % [95 %]", "kappa [95 %]"):
        table.add_column(name)
    for pair in pairs:
        kappa_ends = pair["kappa_interval"]
        table.add_row(
            Text("\n".join(pair["files"])),
            str(pair["rows"]),
            interval(pair["agreed"]["percent"], pair["agreed"]["interval"]),
            "-" if kappa_ends is None else interval(pair["kappa"], kappa_ends, ".3f"),
        )
    console.print(table)


def _table(title: str | None = None) -> Any:
    from rich.console import Console
    from rich.table import Table

    width = None if sys.stdout.isatty() else WIDTH
    console = Console(file=sys.stdout, highlight=False, markup=False, width=width)
    return Table(title=title, title_justify="left"), console
