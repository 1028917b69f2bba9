"""`gistkit compare`: its options, checked before anything slow is imported."""

from pathlib import Path
from typing import Annotated

import typer

from gistkit.cli.compress import Device, Precision
from gistkit.cli.run import refuse_given
from gistkit.errors import OptionError


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
            help="gist, none, first, last, pooled, tfidf, lexrank, llmlingua2, knorm, snapkv, "
            "streaming, expected, trained; may be repeated. The full prompt is always there. "
            "[default: all]",
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
            help="Where compare.json, compare.md and compare.png go. When interrupted, the same "
            "command goes on.",
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
        bool, typer.Option("--verbose", help="Let the libraries speak, on standard error.")
    ] = False,
) -> None:
    """Gists beside their peers: quality against what is kept, on the same model and data.

    The full prompt's cache, gists, no prompt, the first or last k tokens, the cache averaged into k
    slots, TF-IDF, LexRank and LLMLingua-2 extracts, presses of kvpress (`make kvpress`), and k
    entries trained for each instruction.

    \b
    gistkit compare toy --data tasks
    gistkit compare toy --data tasks --methods gist --methods pooled -k 1 -k 4 -k 8
    gistkit compare exp/my-run --data data/alpaca_plus --split human --limit 50
    """
    for name, number in (
        ("--limit", limit),
        ("--trained-limit", trained_limit),
        ("--max-new-tokens", max_new_tokens),
        ("--batch-size", batch_size),
        *(("--num-gist-tokens", k) for k in num_gist_tokens or []),
    ):
        if number < 1:
            raise OptionError(f"{name} must be at least 1, not {number}")
    if seed < 0:
        raise OptionError(f"--seed must be 0 or more, not {seed}")
    if methods and "llmlingua2" not in methods:
        refuse_given(context, "lingua", why="is for --methods llmlingua2; give that too")
    if methods and "trained" not in methods:
        refuse_given(context, "trained_limit", why="is for --methods trained; give that too")

    from gistkit.cli.compare_model import Comparison, compare_model

    compare_model(
        Comparison(
            model=model,
            precision=precision.value,
            device=device.value,
            cache_dir=cache_dir,
            data=data,
            split=split,
            families=families,
            methods=tuple(methods or ()),
            budgets=tuple(dict.fromkeys(num_gist_tokens or ())),
            limit=limit,
            trained_limit=trained_limit,
            lingua=lingua,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seed=seed,
        ),
        out,
        as_json=json,
        force=force,
        verbose=verbose,
    )
