"""`gistkit compress`: the published options and ours, checked before anything slow is imported."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gistkit.cli.request import Request
from gistkit.errors import OptionError, PromptError, SaveError
from gistkit.files import check_target


class Precision(StrEnum):
    """The published names."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


def compress(
    instruction: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The prompt to compress.", show_default=False)
    ] = None,
    input: Annotated[
        str, typer.Option(metavar="TEXT", help="What follows it, not compressed.")
    ] = "",
    model_name_or_path: Annotated[
        str, typer.Option(metavar="MODEL", help="Folder or hub id; `toy` comes with gistkit.")
    ] = "toy",
    base_llama_path: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Base weights, where MODEL is a published weight diff."),
    ] = None,
    num_gist_tokens: Annotated[
        int | None,
        typer.Option(metavar="K", help="Gist tokens. [default: the model's first trained number]"),
    ] = None,
    allow_untrained: Annotated[
        bool,
        typer.Option("--allow-untrained", help="Permit a K that the model was not trained for."),
    ] = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Longest answer. [default: 512, or what the positions allow]"
        ),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Of weights and gist.")] = Precision.fp32,
    device: Annotated[Device, typer.Option(help="Auto: a GPU where there is one.")] = Device.auto,
    cache_dir: Annotated[str, typer.Option(metavar="DIR", help="Where downloads go.")] = ".cache",
    temperature: Annotated[
        float, typer.Option(metavar="T", help="Sample at this temperature; 0 is greedy.")
    ] = 0.0,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Makes sampling repeatable.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the gist in this file.")
    ] = None,
    gist: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Answer from a kept gist: no --instruction.")
    ] = None,
    jsonl: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Answer many: one object a line with `instruction` and, if any, `input`.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Results of --jsonl. [default: standard output] Kept in FILE.partial until all "
            "are there; when interrupted, the same command goes on from it.",
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(metavar="N", help="Lines of --jsonl answered at once.")
    ] = 8,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Also from the whole prompt, cached and not, and without."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Report as one JSON object.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace files that --save or --out name.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Let the libraries speak, on standard error.")
    ] = False,
) -> None:
    """Compress a prompt into gist tokens, and answer from them.

    Reports the compression factor (tokens of the prompt, its start token and the gist tokens
    included, for each gist token), what is kept, and the output.

    \b
    gistkit compress --instruction "Name the capital." --input France
    gistkit compress --instruction "Name the capital." --save capital.gist
    gistkit compress --gist capital.gist --input Italy
    gistkit compress --jsonl prompts.jsonl --out answers.jsonl
    """
    request = Request(
        model=model_name_or_path,
        base=base_llama_path,
        precision=precision.value,
        device=device.value,
        cache_dir=cache_dir,
        num_gist_tokens=num_gist_tokens,
        allow_untrained=allow_untrained,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    check_sources(instruction, gist, jsonl)
    check_utf8("--instruction", instruction or "")
    check_utf8("--input", input)
    check_together("--gist", gist, "--save", save)
    check_together("--gist", gist, "--num-gist-tokens", num_gist_tokens)
    check_together("--gist", gist, "--compare", compare)
    check_together("--compare", compare, "--temperature", temperature)
    for name, value in (("--input", input), ("--save", save), ("--compare", compare)):
        check_together("--jsonl", jsonl, name, value)
    check_together("--jsonl", jsonl, "--json (its results are JSON already)", json)
    if out is not None and jsonl is None:
        raise OptionError("--out keeps the results of --jsonl; give that too, or --save")
    if batch_size < 1:
        raise OptionError(f"--batch-size must be at least 1, not {batch_size}")
    for path in (save, out):
        if path is not None and path.exists() and not force:
            raise SaveError(f"{path} exists already; choose another name, or --force to replace it")

    if jsonl is not None and out is not None and jsonl.resolve() == out.resolve():
        raise OptionError("--jsonl and --out name the same file; the prompts would be lost")
    for path in (save, out):
        if path is not None:
            check_target(path)

    if jsonl is not None:
        from gistkit.cli.many import answer_file

        answer_file(request, jsonl, out, batch_size=batch_size, force=force, verbose=verbose)
        return
    from gistkit.cli.one import answer_one

    answer_one(
        request,
        instruction,
        input,
        gist_file=gist,
        save=save,
        compare_ways=compare,
        as_json=json,
        verbose=verbose,
    )


def check_sources(instruction: str | None, gist: Path | None, jsonl: Path | None) -> None:
    """Exactly one of the three says what to answer (raises PromptError, OptionError)."""
    given = {"--instruction": instruction, "--gist": gist, "--jsonl": jsonl}
    names = [name for name, value in given.items() if value is not None]
    if not names:
        raise PromptError("no instruction given; use --instruction TEXT, --gist FILE, --jsonl FILE")
    if len(names) > 1:
        raise OptionError(f"{' and '.join(names)} exclude each other; give one of them")
    if instruction is not None and not instruction.strip():
        raise PromptError("the instruction is empty; give the text to compress")


def check_together(name: str, value: object, other: str, other_value: object) -> None:
    """Refuse two options that make no sense together (raises OptionError)."""
    if value not in (None, False) and other_value not in (None, False, "", 0.0):
        raise OptionError(f"{name} does not go with {other}; leave one of them out")


def check_utf8(name: str, text: str) -> None:
    """Refuse bytes of the command line that are not UTF-8 (raises PromptError)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptError(f"{name} is not UTF-8 text; convert it first") from None
