"""`gistkit evaluate`: its options, checked before anything slow is imported."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gistkit.cli.compress import Device, Precision, check_together
from gistkit.errors import OptionError


class Condition(StrEnum):
    """What an answer may see."""

    gist = "gist"
    pos_control = "pos_control"
    neg_control = "neg_control"
    all = "all"


class Way(StrEnum):
    """How an answer is computed."""

    cache = "cache"
    mask = "mask"


def evaluate(
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
            "hold answers to the same examples: each is compared with the last.",
        ),
    ] = None,
    unpaired: Annotated[
        bool, typer.Option("--unpaired", help="Score several files, but compare none.")
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
        Condition,
        typer.Option(
            metavar="NAME",
            help="What answers may see: gist, pos_control, neg_control; all compares them.",
        ),
    ] = Condition.gist,
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
        Way,
        typer.Option(help="Answer from the cached gist, or under the mask (slow, as published)."),
    ] = Way.cache,
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
            help="Where outputs and metrics go. When interrupted, the same command goes on.",
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
        bool, typer.Option("--verbose", help="Let the libraries speak, on standard error.")
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
    if seed < 0:
        raise OptionError(f"--seed must be 0 or more, not {seed}")
    names = model or []
    if outputs:
        for name, value in (
            ("--data", data),
            ("--split", split),
            ("--condition", condition is not Condition.gist),
            ("-k", num_gist_tokens),
            ("--path", path is not Way.cache),
            ("--max-samples", max_samples),
            ("--max-new-tokens", max_new_tokens),
        ):
            check_together("--outputs", outputs, name, value)
        from gistkit.cli.score import score_files

        score_files([*outputs, *map(Path, names)], paired=not unpaired, seed=seed, as_json=json)
        return
    check_together("--unpaired", unpaired, "a model", names)
    if len(names) != 1 or not names[0] or not data:
        raise OptionError(
            "nothing to evaluate: give one MODEL with --data PATH, or CSV files with --outputs FILE"
        )
    for name, number in (
        ("--max-samples", max_samples),
        ("--max-new-tokens", max_new_tokens),
        ("--batch-size", batch_size),
        *(("--num-gist-tokens", k) for k in num_gist_tokens or []),
    ):
        if number is not None and number < 1:
            raise OptionError(f"{name} must be at least 1, not {number}")

    from gistkit.cli.evaluate_model import Evaluation, evaluate_model

    evaluate_model(
        Evaluation(
            model=names[0],
            precision=precision.value,
            device=device.value,
            cache_dir=cache_dir,
            data=data,
            splits=tuple(split or ()),
            condition=condition.value,
            ks=tuple(num_gist_tokens or ()),
            path=path.value,
            max_samples=max_samples,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seed=seed,
        ),
        out,
        as_json=json,
        force=force,
        verbose=verbose,
    )
