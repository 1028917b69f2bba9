"""`gistkit compress`: options are checked before anything slow is imported."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gistkit.answers import Answering, Settings, answer, read_prompts
from gistkit.cli.run import ModelOptions, emit, progress_bar, say
from gistkit.errors import GistkitError, GistMismatchError, OptionError, PromptError
from gistkit.files import check_new
from gistkit.prompts import check_instruction, check_text

if TYPE_CHECKING:
    from gistkit.baselines import Answered
    from gistkit.gist import Gist
    from gistkit.model import GistModel

SCHEMA_VERSION = 1
ROUNDS = 5


class Precision(StrEnum):
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Device(StrEnum):
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
    weight_diff_base: Annotated[
        str | None,
        typer.Option(
            "--base-llama-path",
            metavar="MODEL",
            help="Base weights, where MODEL is a published weight diff.",
        ),
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
        Path | None, typer.Option(metavar="FILE", help="Save the gist to this file.")
    ] = None,
    gist: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Answer from a gist file: no --instruction."),
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
            "are there; rerun an interrupted command to resume.",
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
        bool, typer.Option("--verbose", help="Show messages of the libraries, on standard error.")
    ] = False,
) -> None:
    """Compress a prompt into gist tokens, and answer from them.

    Reports the compression factor (tokens of the prompt, its start token and the gist tokens
    included, per gist token), what is cached, and the output.

    \b
    gistkit compress --instruction "Name the capital." --input France
    gistkit compress --instruction "Name the capital." --save capital.gist
    gistkit compress --gist capital.gist --input Italy
    gistkit compress --jsonl prompts.jsonl --out answers.jsonl
    """
    if not model_name_or_path:
        raise OptionError("--model-name-or-path is empty; give a folder or a hub id")
    options = ModelOptions(
        model=model_name_or_path,
        precision=precision.value,
        device=device.value,
        cache_dir=cache_dir,
        weight_diff_base=weight_diff_base,
    )
    settings = Settings(
        num_gist_tokens=num_gist_tokens,
        allow_untrained=allow_untrained,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    check_sources(instruction, gist, jsonl)
    check_text("input", input)
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
        if path is not None:
            check_new(path, force=force)
    if jsonl is not None and out is not None and jsonl.resolve() == out.resolve():
        raise OptionError("--jsonl and --out name the same file; the prompts would be lost")

    # complain before the model is loaded
    prompts = None if jsonl is None else read_prompts(jsonl)
    saved = None if gist is None else _load_gist(gist)
    start = time.perf_counter()
    model = options.load(verbose=verbose)
    if prompts is not None:
        _answer_all(Answering(model, prompts, settings, batch_size=batch_size), out, force=force)
        return
    loaded = time.perf_counter() - start
    made, facts = answer(model, input, settings, instruction=instruction, gist=saved)
    if save is not None:
        made.save(save)
    modes = None
    if compare:
        assert instruction is not None
        modes = _compare(model, instruction, input, settings)
    facts = {
        "model": model_name_or_path,
        "precision": precision.value,
        **facts,
        "seconds": {"load": round(loaded, 6), **facts["seconds"]},
        "saved": None if save is None else str(save),
    }
    if json:
        if modes is not None:
            facts["compare"] = {"rounds": ROUNDS, "modes": [_as_json(mode) for mode in modes]}
        from gistkit.report import versions

        head = {
            "schema_version": SCHEMA_VERSION,
            "versions": versions(("gistkit", "torch", "transformers")),
        }
        emit(dumps(head | facts, ensure_ascii=False))
        return
    emit(as_text(facts))
    if modes is not None:
        print_modes(modes)


def _load_gist(path: Path) -> "Gist":
    from gistkit.gist import Gist

    gist = Gist.load(path)
    if len(gist) != 1:
        raise GistMismatchError(f"{path} holds {len(gist)} gists; save the one to use alone")
    return gist


def _answer_all(answering: Answering, out: Path | None, *, force: bool) -> None:
    done, total = 0, len(answering.prompts)
    with progress_bar() as bar:
        task = bar.add_task("answering", total=total)

        def progress(count: int) -> None:
            nonlocal done
            done = count
            bar.update(task, completed=count)

        try:
            if out is not None:
                answering.write(out, force=force, progress=progress)
                return
            for batch in answering.results():
                emit("\n".join(dumps(result, ensure_ascii=False) for result in batch))
                progress(done + len(batch))
        except (KeyboardInterrupt, GistkitError):
            if done:
                rest = f"in {out}.partial; rerun the same command to resume" if out else "written"
                say(f"stopped; {done} of {total} results are {rest}")
            raise


def _compare(
    model: "GistModel", instruction: str, input: str, settings: Settings
) -> "list[Answered]":
    from gistkit.baselines import compare

    k = model.check_k(settings.num_gist_tokens, allow_untrained=settings.allow_untrained)
    new = len(model.encoder.input(input))
    whole = len(model.encoder.instruction(instruction, k)) + new
    limit = model.adapter.max_positions
    fits = limit is None or whole < limit  # if not, the answers are as long as the gist allows
    return compare(
        model,
        instruction,
        input,
        num_gist_tokens=k,
        allow_untrained=settings.allow_untrained,
        max_new_tokens=settings.longest_answer(model, [whole if fits else k + new]),
        rounds=ROUNDS,
    )


def check_sources(instruction: str | None, gist: Path | None, jsonl: Path | None) -> None:
    """Refuse none or several of the three (raises PromptError, OptionError)."""
    given = {"--instruction": instruction, "--gist": gist, "--jsonl": jsonl}
    names = [name for name, value in given.items() if value is not None]
    if not names:
        raise PromptError("no instruction given; use --instruction TEXT, --gist FILE, --jsonl FILE")
    if len(names) > 1:
        raise OptionError(f"{' and '.join(names)} exclude each other; give one of them")
    if instruction is not None:
        check_instruction(instruction)


def check_together(name: str, value: object, other: str, other_value: object) -> None:
    """Refuse two options that make no sense together (raises OptionError)."""
    if value not in (None, False) and other_value not in (None, False, "", 0.0):
        raise OptionError(f"{name} does not go with {other}; leave one of them out")


def as_text(found: Mapping[str, Any]) -> str:
    """The report, worded as the published script's."""
    k, prompt = found["num_gist_tokens"], found["prompt_tokens"]
    tokens = "1 gist token" if k == 1 else f"{k} gist tokens"
    named = found["instruction"] or f"(from a file; SHA-256 {found['instruction_sha256'][:12]})"
    cache = ", ".join(f"{c['tensors']} x {c['what']} {c['shape']}" for c in found["cache"])
    before, after = (human_bytes(found[f"kv_bytes_{when}"]) for when in ("before", "after"))
    seconds = found["seconds"]
    lines = [
        f"Instruction: {named}",
        f"Compressed into {tokens} (compression factor {found['compression_factor']:.2f}x: "
        f"{prompt} prompt tokens, start and gist tokens counted, kept as {k})",
        f"Cache: {cache}",
        f"Cache size: {before} -> {after}",
        f"Time: compress {human_seconds(seconds['compress'])}, "
        f"generate {human_seconds(seconds['generate'])}",
        f"Input: {found['input']}" if found["input"] else "Input: (none)",
        f"Output: {found['output']}",
    ]
    if found["saved"]:
        lines.append(f"Saved: {found['saved']}")
    return "\n".join(lines)


def print_modes(modes: "Sequence[Answered]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    def column(cell: "Callable[[Answered], str]") -> list[str]:
        return ["-" if mode.missing else cell(mode) for mode in modes]

    rows = {
        "output": [f"({mode.missing})" if mode.missing else mode.outputs[0] for mode in modes],
        "prompt tokens kept": column(lambda mode: str(mode.kept_tokens)),
        "KV bytes kept": column(lambda mode: human_bytes(mode.kept_bytes)),
        "prompt tokens read": column(lambda mode: str(mode.read_tokens)),
        "time to prepare": column(
            lambda mode: human_seconds(mode.prepare_seconds) if mode.kept_tokens else "-"
        ),
        "time to first token": column(lambda mode: human_seconds(mode.first_token_seconds)),
        "time to answer": column(lambda mode: human_seconds(mode.total_seconds)),
    }
    caption = (
        f"Times are medians of {ROUNDS} interleaved rounds in one process on this machine; "
        "what is kept is prepared once."
    )
    table = Table(caption=caption, show_lines=True)
    table.add_column(no_wrap=True)
    for mode in modes:
        table.add_column(mode.mode)
    for name, cells in rows.items():
        table.add_row(Text(name), *(Text(cell) for cell in cells))
    Console(file=sys.stdout, highlight=False).print(table)


def human_bytes(count: int) -> str:
    """1536 -> "1.5 KiB"."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def human_seconds(seconds: float) -> str:
    """0.0123 -> "12.3 ms"."""
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _as_json(mode: "Answered") -> Mapping[str, Any]:
    facts = asdict(mode)
    outputs = facts.pop("outputs")
    return {**facts, "output": outputs[0] if outputs else ""}
