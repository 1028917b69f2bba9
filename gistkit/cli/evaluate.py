"""`gistkit evaluate`: score files of answers, or a model's answers to splits."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from gistkit.cli.compress import Device, Precision
from gistkit.cli.run import ModelOptions, check_least, emit, progress_bar, refuse_given, say
from gistkit.conditions import CONDITIONS
from gistkit.errors import GistkitError, OptionError


class Mode(StrEnum):
    cache = "cache"
    mask = "mask"


def evaluate(
    context: typer.Context,
    model: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Folder or hub id; `toy` comes with gistkit. With --outputs: more files.",
        ),
    ] = None,
    outputs: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE...",
            help="Score these CSV files (x,y_pred,y_true; also .gz, .xz) without a model. Several "
            "must answer the same examples: each is compared with the last.",
        ),
    ] = None,
    unpaired: Annotated[
        bool, typer.Option("--unpaired", help="Score several files without comparing them.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="What MODEL answers: a file of examples, a folder of Alpaca+, or `tasks`.",
        ),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="seen, unseen, human; may be repeated. [default: all]"),
    ] = None,
    condition: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help=f"What answers may see: {', '.join(CONDITIONS)}; all compares them.",
        ),
    ] = "gist",
    num_gist_tokens: Annotated[
        list[int] | None,
        typer.Option(
            "--num-gist-tokens",
            "-k",
            metavar="K",
            help="Gist tokens; may be repeated. [default: the model's first trained number; with "
            "--condition all: every trained number]",
        ),
    ] = None,
    path: Annotated[
        Mode,
        typer.Option(help="Answer from the cached gist, or under the mask (slow, as published)."),
    ] = Mode.cache,
    max_samples: Annotated[
        int | None, typer.Option(metavar="N", help="Answer only N examples of each split.")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Longest answer. [default: as published, 128; decoder-only 512 with the prompt]",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Examples answered at once.")] = 8,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Folder for outputs and metrics. Rerun an interrupted command to resume.",
        ),
    ] = Path("evaluation"),
    precision: Annotated[Precision, typer.Option(help="Of the weights.")] = Precision.fp32,
    device: Annotated[Device, typer.Option(help="Auto: a GPU where there is one.")] = Device.auto,
    cache_dir: Annotated[str, typer.Option(metavar="DIR", help="Where downloads go.")] = ".cache",
    seed: Annotated[int, typer.Option(metavar="N", help="Of the intervals' bootstrap.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Report as one JSON object.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what --out holds of another evaluation.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show the libraries' messages on standard error.")
    ] = False,
) -> None:
    """Score answers: those in CSV files, or those a model gives to a split.

    ROUGE (Porter stemmer, mean F-measure) and exact match in percent, with 95 % intervals.

    \b
    gistkit evaluate --outputs outputs-3000-validation_human.csv
    gistkit evaluate --outputs gist.csv pos_control.csv
    gistkit evaluate exp/my-run --data data/alpaca_plus --split unseen
    gistkit evaluate toy --data tasks --condition all --max-samples 100
    """
    if condition not in (known := [*CONDITIONS, "all"]):
        raise OptionError(f"`condition`: {condition!r} is not one of {', '.join(known)}")
    check_least(context, 0, "seed")
    names = model or []
    if outputs:
        refuse_given(
            context, "data", "split", "condition", "num_gist_tokens", "path", "max_samples",
            "max_new_tokens", why="does not go with --outputs; leave one of them out",
        )  # fmt: skip
        files = [*outputs, *map(Path, names)]
        from gistkit.evaluation.scores import report_head, score_files

        found = score_files(files, unpaired=unpaired, seed=seed)
        if json:
            shown = found["files"][0] if len(files) == 1 else found
            emit(dumps({**report_head(seed), **shown}, ensure_ascii=False))
        else:
            _print_files(files, found)
        return
    if names:
        refuse_given(context, "unpaired", why="does not go with a model; leave one of them out")
    if len(names) != 1 or not names[0] or not data:
        raise OptionError(
            "nothing to evaluate: give one MODEL with --data PATH, or CSV files with --outputs FILE"
        )
    check_least(context, 1, "max_samples", "max_new_tokens", "batch_size", "num_gist_tokens")
    shared = ("precision", "device", "cache_dir", "data", "condition", "path", "max_samples",
              "max_new_tokens", "batch_size", "seed")  # fmt: skip
    config = {
        "model": names[0],
        **{name: context.params[name] for name in shared},
        "splits": split or [],
        "ks": num_gist_tokens or [],
        "out": str(out),
    }
    _evaluate_model(config, out, as_json=json, force=force, verbose=verbose)


def _evaluate_model(
    config: dict[str, Any], out: Path, *, as_json: bool, force: bool, verbose: bool
) -> None:
    """Answer, score, write and print; raises as `Evaluation`."""
    from gistkit.evaluation.data import read_validation
    from gistkit.metrics import rouge

    rouge(["a"], ["a"])  # complain before answering that rouge_score is not installed
    splits = read_validation(config["data"], config["splits"], limit=config["max_samples"])
    from gistkit.evaluation.run import Evaluation, answer_options, metrics_file, step_of

    step = step_of(config["model"])
    metrics_file(out, step, force=force)  # complain before the model is loaded
    names = ("model", "precision", "device", "cache_dir")
    model = ModelOptions(**{name: config[name] for name in names}).load(verbose=verbose)
    options = {name: config[name] for name in ("batch_size", "max_new_tokens", "path")}
    cases = answer_options(model, config["condition"], config["ks"], **options)
    with (
        Evaluation(model, splits, cases, out, step=step, force=force) as evaluation,
        progress_bar() as progress,
    ):

        def started(what: str, rows: int, done: int) -> Callable[[int], None]:
            return partial(progress.advance, progress.add_task(what, total=rows, completed=done))

        try:
            report = evaluation.run(
                seed=config["seed"],
                about={"model": config["model"], "config": config},
                started=started,
            )
        except (KeyboardInterrupt, GistkitError):
            progress.stop()
            if evaluation.done:
                say(
                    f"stopped; {evaluation.done} of {evaluation.total} answers are saved in {out}; "
                    "rerun the same command to resume"
                )
            raise
    if as_json:
        emit(dumps(report, ensure_ascii=False))
        return
    for name in splits:
        scores = {score["case"]: score for score in report["scores"] if score["split"] == name}
        pairs = [pair for pair in report["paired"] if pair["split"] == name]
        _print_scores(scores, {f"{pair['a']} - {pair['b']}": pair for pair in pairs}, title=name)


def _print_files(paths: Sequence[Path], found: Mapping[str, Any]) -> None:
    *names, last = _labels(paths)
    _print_scores(
        dict(zip([*names, last], found["files"], strict=True)),
        {f"{name} - {last}": pair for name, pair in zip(names, found["paired"], strict=False)},
    )


def _labels(paths: Sequence[Path]) -> list[str]:
    """Short names of files: what their paths do not share; numbered where they are equal."""
    shared = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    names = [str(path.absolute().relative_to(shared)) for path in paths]
    if len({Path(name).name for name in names}) == 1 < len(set(names)):
        names = [str(Path(name).parent) for name in names]  # one file name in many folders
    return [
        f"{name} ({number})" if names.count(name) > 1 else name
        for number, name in enumerate(names, 1)
    ]


def _print_scores(
    scores: Mapping[str, Mapping[str, Any]],
    differences: Mapping[str, Mapping[str, Any]],
    *,
    title: str | None = None,
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from gistkit.metrics import METRICS

    console = Console(file=sys.stdout, highlight=False)
    tables = [(title, scores, _mean)]
    if differences:
        tables.append(("paired differences", differences, _difference))
    for heading, columns, cell in tables:
        table = Table(title=heading, title_justify="left")
        table.add_column()
        for name in columns:
            table.add_column(Text(name, overflow="fold"))
        if columns is scores:
            table.add_row("rows", *(str(report["rows"]) for report in scores.values()))
        for name, metric in METRICS.items():
            if any(name in report for report in columns.values()):
                cells = (cell(report, name, metric.format) for report in columns.values())
                table.add_row(name, *cells)
        console.print(table)


def _mean(report: Mapping[str, Any], name: str, form: str) -> str:
    interval = report["intervals"].get(name)
    shown = "" if interval is None else " [{:.1f}, {:.1f}]".format(*interval)
    return f"{report[name]:{form}}{shown}"


def _difference(report: Mapping[str, Any], name: str, form: str) -> str:
    low, high = report[name]["interval"]
    return f"{report[name]['difference']:+{form}} [{low:+.1f}, {high:+.1f}]"
