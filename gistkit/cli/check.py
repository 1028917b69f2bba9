"""`gistkit check`: measure a gist's fidelity, or read it from a file, and print it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import repeat
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gistkit.answers import Settings
from gistkit.cli.compress import Device, Precision, check_together
from gistkit.cli.run import ModelOptions, emit
from gistkit.cli.store import SHOWN, open_store
from gistkit.errors import DataError, GistFileError, OptionError, PromptError
from gistkit.files import check_new
from gistkit.prompts import check_instruction

if TYPE_CHECKING:
    from gistkit.fidelity import Fidelity
    from gistkit.gist import Gist
    from gistkit.model import GistModel

MEANING = {
    "divergence": "exp(-KL) of a token, full prompt to gist",
    "top1": "tokens on which both agree",
    "prefix": "share of an answer before they part",
    "likelihood": "probability of the full prompt's tokens",
    "carried": "information over no prompt at all",
    "numbers": "the same, of the instruction's numbers",
    "names": "the same, of its names",
    "negations": "the same, over the prompt without its negations",
}


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
            help="A gist file; may be repeated. Without --instruction: the fidelity saved in it is "
            "shown. With it: this one gist is measured, and the result saved in the file.",
        ),
    ] = None,
    probes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Inputs like those expected, one a line. [default: sampled from the model, which "
            "is a weaker test]",
        ),
    ] = None,
    num_probes: Annotated[int, typer.Option(metavar="N", help="How many are sampled.")] = 8,
    min_fidelity: Annotated[
        float | None,
        typer.Option(metavar="X", help="Below this a gist is not safe. [default: 0.96]"),
    ] = None,
    num_gist_tokens: Annotated[
        int | None,
        typer.Option(metavar="K", help="Gist tokens. [default: the model's first trained number]"),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", help="Longest answer that is compared.")
    ] = 64,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the sampling.")] = 0,
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save the gist and its fidelity.")
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Folder or URL of a store: its gist of --instruction is measured, and the result "
            "saved there, for gistkit serve.",
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
        bool, typer.Option("--verbose", help="Show messages of the libraries, on standard error.")
    ] = False,
) -> None:
    """Is this gist safe? Compare its predictions with those of the full prompt.

    Exit status: 0 every gist reaches --min-fidelity, 1 one does not, 2 invalid input.

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
        check_instruction(instruction)
        if len(files) > 1:
            raise OptionError("one instruction measures one --gist; leave out the others")
    else:
        for name, value in (("--probes", probes), ("--save", save), ("--store", store)):
            check_together(name, value, "--gist alone (give --instruction too)", True)
    check_together("--gist", files or None, "--save (the result is saved in the gist file)", save)
    check_together("--gist", files or None, "--num-gist-tokens", num_gist_tokens)
    check_together("--gist", files or None, "--store", store)
    check_together("--save", save, "--store", store)
    if min_fidelity is not None and not 0 <= min_fidelity <= 1:
        raise OptionError(f"--min-fidelity must be between 0 and 1, not {min_fidelity}")
    if save is not None:
        check_new(save, force=force)

    if instruction is None:
        found = _saved(files)
    else:
        settings = Settings(
            num_gist_tokens=num_gist_tokens, max_new_tokens=max_new_tokens, seed=seed
        )
        inputs = None if probes is None else read_probes(probes)
        from gistkit.gist import Gist

        given = Gist.load(files[0]) if files else None
        options = ModelOptions(
            model=model, precision=precision.value, device=device.value, cache_dir=cache_dir
        )
        loaded = options.load(verbose=verbose)
        from gistkit.fidelity import measure_fidelity, with_fidelity

        def measure(gist: Gist) -> Gist:
            fidelity = measure_fidelity(
                loaded,
                instruction,
                gist,
                probes=inputs,
                num_probes=num_probes,
                max_new_tokens=max_new_tokens,
                seed=seed,
            )
            return with_fidelity(gist, fidelity)

        if store is not None:
            found = [_in_store(loaded, instruction, store, num_gist_tokens, measure)]
        else:
            made = settings.compress(loaded, [instruction]) if given is None else given
            measured = measure(made.to(device=loaded.device))
            target = save or (files[0] if files else None)
            if target is not None:
                measured.save(target)
            found = [Found(str(target or "the gist"), measured)]
    if not verdict(found, min_fidelity, as_json=json):
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class Found:
    name: str
    gist: "Gist"

    @property
    def fidelity(self) -> "Fidelity":
        from gistkit.fidelity import fidelity_of

        fidelity = fidelity_of(self.gist)
        if fidelity is None:
            raise GistFileError(f"{self.name} was never measured; give its `instruction` too")
        return fidelity


def _saved(files: Sequence[Path]) -> list[Found]:
    """The gists in the files (raises GistFileError where one cannot be read)."""
    from gistkit.gist import Gist

    return [
        Found(f"{path}" if row == 0 else f"{path} [{row}]", gist)
        for path in files
        for row, gist in enumerate(Gist.load(path))
    ]


def _in_store(
    model: "GistModel",
    instruction: str,
    location: str,
    num_gist_tokens: int | None,
    measure: "Callable[[Gist], Gist]",
) -> Found:
    """Measure the store's gist of the instruction, made where there is none; the store keeps it."""
    from gistkit.store import GistKey

    k = model.check_k(num_gist_tokens)
    with open_store(location, make=True) as store:
        measured = measure(store.get_or_compress(model, instruction, num_gist_tokens=k))
        id = GistKey.of(model, instruction, k).id
        store.update(id, measured)
    return Found(f"gist {id[:SHOWN]} of {location}", measured)


def read_probes(path: Path) -> list[str]:
    """Lines that are not blank (raises DataError)."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"could not read {path}: {error.strerror}; give a text file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text; convert it first") from error
    probes = [line.strip() for line in lines if line.strip()]
    if not probes:
        raise DataError(f"{path} has no probes; write one input a line")
    return probes


def verdict(found: Sequence[Found], minimum: float | None, *, as_json: bool) -> bool:
    """Print what was found; returns whether every gist is safe."""
    from gistkit.fidelity import MIN_FIDELITY

    limit = MIN_FIDELITY if minimum is None else minimum
    fidelities = [measured.fidelity for measured in found]
    safe = [fidelity.score >= limit for fidelity in fidelities]
    if as_json:
        gists = [
            {
                "gist": measured.name,
                "num_gist_tokens": measured.gist.num_tokens,
                "safe": ok,
                "fidelity": fidelity.to_json(),
            }
            for measured, fidelity, ok in zip(found, fidelities, safe, strict=True)
        ]
        emit(dumps({"schema_version": 1, "min_fidelity": limit, "safe": all(safe), "gists": gists}))
    else:
        emit("\n\n".join(map(_text, found, fidelities, safe, repeat(limit))))
    return all(safe)


def _text(found: Found, fidelity: "Fidelity", safe: bool, limit: float) -> str:
    source = "sampled from the model" if fidelity.drawn else "given"
    lines = [
        f"{found.name}: fidelity {fidelity.score:.3f}, "
        + (f"safe (at least {limit:g})" if safe else f"NOT SAFE (below {limit:g})"),
        f"  k = {found.gist.num_tokens}; {fidelity.probes} probes ({source}), "
        f"{fidelity.tokens} tokens; KL {fidelity.kl:.4f} nats a token",
    ]
    for name, value in fidelity.parts.items():
        shown = "    -" if value is None else f"{value:.3f}"
        lines.append(f"  {name:<11} {shown}  {MEANING[name]}")
    return "\n".join(lines)
