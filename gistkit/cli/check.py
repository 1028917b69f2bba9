"""`gistkit check`: its options, checked before anything slow is imported."""

from pathlib import Path
from typing import Annotated

import typer

from gistkit.cli.compress import Device, Precision, check_together, check_utf8
from gistkit.errors import OptionError, PromptError, SaveError
from gistkit.files import check_target


def check(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder or hub id; `toy` is the default.")
    ] = "toy",
    instruction: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The prompt whose gist is measured.", show_default=False),
    ] = None,
    gist: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="A gist file; may be repeated. Without --instruction: what was measured before, "
            "as the file keeps it. With it: this one gist is measured, and the file keeps it.",
        ),
    ] = None,
    probes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Inputs like those to come, one a line. [default: the model draws some, which "
            "says less]",
        ),
    ] = None,
    num_probes: Annotated[int, typer.Option(metavar="N", help="How many the model draws.")] = 8,
    min_fidelity: Annotated[
        float | None,
        typer.Option(metavar="X", help="Below this a gist is not safe. [default: 0.96]"),
    ] = None,
    num_gist_tokens: Annotated[
        int | None,
        typer.Option(metavar="K", help="Gist tokens. [default: the model's first trained number]"),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", help="Answers are compared up to there.")
    ] = 64,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the drawing.")] = 0,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the gist, and what was measured.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Folder or URL of a store: its gist of --instruction is measured, and it keeps "
            "the result, for gistkit serve.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that --save names.")] = (
        False
    ),
    precision: Annotated[Precision, typer.Option(help="Of weights and gist.")] = Precision.fp32,
    device: Annotated[Device, typer.Option(help="Auto: a GPU where there is one.")] = Device.auto,
    cache_dir: Annotated[str, typer.Option(metavar="DIR", help="Where downloads go.")] = ".cache",
    json: Annotated[bool, typer.Option("--json", help="Report as one JSON object.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Let the libraries speak, on standard error.")
    ] = False,
) -> None:
    """Is this gist safe? Compare its predictions with those of the full prompt.

    Exit status: 0 every gist reaches --min-fidelity, 1 one does not, 2 a mistake in what was asked.

    \b
    gistkit check --instruction "Everything costs nine coins. You are Nora." --probes inputs.txt
    gistkit check MODEL --instruction "..." --gist shop.safetensors --probes inputs.txt
    gistkit check MODEL --instruction "..." --store /var/lib/gistkit --probes inputs.txt
    gistkit check --gist shop.safetensors --gist other.safetensors --min-fidelity 0.9
    """
    files = gist or []
    if instruction is None and not files:
        raise PromptError("nothing to check; use --instruction TEXT, --gist FILE, or both")
    if instruction is not None:
        if not instruction.strip():
            raise PromptError("the instruction is empty; give the text to compress")
        check_utf8("--instruction", instruction)
        if len(files) > 1:
            raise OptionError("one instruction measures one --gist; leave out the others")
    else:
        for name, value in (("--probes", probes), ("--save", save), ("--store", store)):
            check_together(name, value, "--gist alone (give --instruction too)", True)
    check_together("--gist", files or None, "--save (the file keeps what is measured)", save)
    check_together("--gist", files or None, "--num-gist-tokens", num_gist_tokens)
    check_together("--gist", files or None, "--store", store)
    check_together("--save", save, "--store", store)
    if min_fidelity is not None and not 0 <= min_fidelity <= 1:
        raise OptionError(f"--min-fidelity must be between 0 and 1, not {min_fidelity}")
    if save is not None:
        check_target(save)
        if save.exists() and not force:
            raise SaveError(f"{save} exists already; choose another name, or --force to replace it")

    from gistkit.cli.check_gist import check_kept, measure, verdict
    from gistkit.cli.request import Request

    if instruction is None:
        found = check_kept(files)
    else:
        request = Request(
            model=model,
            base=None,
            precision=precision.value,
            device=device.value,
            cache_dir=cache_dir,
            num_gist_tokens=num_gist_tokens,
            allow_untrained=False,
            max_new_tokens=max_new_tokens,
            temperature=0.0,
            seed=seed,
        )
        measured = measure(
            request,
            instruction,
            files[0] if files else None,
            probes=probes,
            num_probes=num_probes,
            save=save,
            place=store,
            verbose=verbose,
        )
        found = [measured]
    if not verdict(found, min_fidelity, as_json=json):
        raise typer.Exit(1)
