"""`gistkit compare`: its options, checked before anything slow is imported."""

from collections.abc import Callable
from functools import partial
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gistkit.cli.compress import Device, Precision
from gistkit.cli.run import ModelOptions, check_least, emit, progress_bar, refuse_given
from gistkit.errors import OptionError

if TYPE_CHECKING:
    from gistkit.model import GistModel
    from gistkit.prompts import Example

TASK_SEED = 0
POOL = 400  # generated examples behind those that are answered, whose inputs are probes


def compare(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder or hub id of a decoder-only gist model.")
    ] = "toy",
    data: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="What is answered: a file of examples, a folder of Alpaca+, or `tasks`.",
        ),
    ] = "tasks",
    split: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="seen, unseen, human. [default: unseen; a file's own]"),
    ] = None,
    families: Annotated[
        str | None,
        typer.Option(
            metavar="NAME+NAME",
            help="Of the generated tasks. [default: those the model says it was trained on; all]",
        ),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A method such as gist, first or tfidf (docs/compare.md has all; a wrong name "
            "lists them); may be repeated. The full prompt is always there. [default: all]",
        ),
    ] = None,
    num_gist_tokens: Annotated[
        list[int] | None,
        typer.Option(
            "--num-gist-tokens",
            "-k",
            metavar="K",
            help="The budget of every method, in tokens; may be repeated. [default: the model's "
            "first trained number]",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", help="Answer only N examples.")] = 100,
    trained_limit: Annotated[
        int, typer.Option(metavar="N", help="Train entries for only N of them (seconds each).")
    ] = 10,
    lingua: Annotated[
        str, typer.Option(metavar="MODEL", help="Folder or hub id of LLMLingua-2's classifier.")
    ] = "microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank",
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Longest answer.")] = 128,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Examples answered at once.")] = 8,
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Where compare.json, compare.md and compare.png go. If interrupted, rerun the "
            "same command to resume.",
        ),
    ] = Path("comparison"),
    seed: Annotated[int, typer.Option(metavar="N", help="Of intervals and probes.")] = 0,
    precision: Annotated[Precision, typer.Option(help="Of the weights.")] = Precision.fp32,
    device: Annotated[Device, typer.Option(help="Auto: a GPU where there is one.")] = Device.auto,
    cache_dir: Annotated[str, typer.Option(metavar="DIR", help="Where downloads go.")] = ".cache",
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what --out holds of another comparison.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show the libraries' messages on standard error.")
    ] = False,
) -> None:
    """Compare gists with other ways to keep a prompt: quality against what is kept.

    The full prompt's cache, gists, no prompt, the first or last k tokens, the cache averaged into k
    slots, TF-IDF, LexRank and LLMLingua-2 extracts, presses of kvpress (`make kvpress`), and k
    entries trained for each instruction.

    \b
    gistkit compare toy --data tasks
    gistkit compare toy --data tasks --methods gist --methods pooled -k 1 -k 4 -k 8
    gistkit compare exp/my-run --data data/alpaca_plus --split human --limit 50
    """
    check_least(
        context, 1, "limit", "trained_limit", "max_new_tokens", "batch_size", "num_gist_tokens"
    )
    check_least(context, 0, "seed")
    if methods and "llmlingua2" not in methods:
        refuse_given(context, "lingua", why="is for --methods llmlingua2; give that too")
    if methods and "trained" not in methods:
        refuse_given(context, "trained_limit", why="is for --methods trained; give that too")

    from gistkit.compare.methods import check_names

    check_names(methods or ())
    loaded = ModelOptions(
        model=model, precision=precision.value, device=device.value, cache_dir=cache_dir
    ).load(verbose=verbose)
    from gistkit.compare import Options, markdown
    from gistkit.compare import compare as compare_methods

    rows = _read(loaded, data, split, families, limit)
    options = Options(
        methods=tuple(methods or ()),
        budgets=tuple(dict.fromkeys(num_gist_tokens or ())),
        trained_limit=trained_limit,
        lingua=lingua,
        cache_dir=cache_dir,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
    )
    names = ("model", "precision", "device", "data", "split", "families", "limit")
    about = {name: context.params[name] for name in names}
    with progress_bar() as progress:

        def started(name: str, steps: int) -> Callable[[int], None]:
            for task in progress.task_ids:
                progress.remove_task(task)
            return partial(progress.advance, progress.add_task(name, total=steps))

        report = compare_methods(
            loaded, rows[:limit], out, options, pool=rows[limit:], about=about, force=force,
            progress=started,
        )  # fmt: skip
    emit(dumps(report, ensure_ascii=False) if json else markdown(report["leaderboard"]))


def _read(
    model: "GistModel", data: str, split: str | None, families: str | None, limit: int
) -> "list[Example]":
    """All examples there are, in the order in which they are answered (raises DataError)."""
    from gistkit.data import tasks
    from gistkit.evaluation.data import PREFIX, TASKS, read_validation

    if data == TASKS:
        trained = model.config.training.get("families")
        known = trained if isinstance(trained, list) else [tasks.MIXED]
        name = PREFIX + (split or "unseen").removeprefix(PREFIX)
        return tasks.generate(families or "+".join(known), name, n=limit + POOL, seed=TASK_SEED)
    if families is not None:
        raise OptionError("--families belongs to the generated tasks; use --data tasks")
    chosen = split or ("unseen" if Path(data).is_dir() else None)
    (rows,) = read_validation(data, [chosen] if chosen else []).values()
    return rows
