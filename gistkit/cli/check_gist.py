"""What `gistkit check` does: measure or read a fidelity, keep it, print it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

from gistkit.cli.request import Request
from gistkit.cli.run import emit
from gistkit.cli.store import SHOWN, open_store
from gistkit.errors import DataError, GistFileError

if TYPE_CHECKING:
    from gistkit.fidelity import Fidelity

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


@dataclass(frozen=True, slots=True)
class Found:
    """A gist by its name, k, and what was measured of it."""

    name: str
    num_gist_tokens: int
    fidelity: "Fidelity"


def check_kept(files: Sequence[Path]) -> list[Found]:
    """What the files keep (raises GistFileError where one is unread or was never measured)."""
    from gistkit.fidelity import fidelity_of
    from gistkit.gist import Gist

    found = []
    for path in files:
        for row, gist in enumerate(Gist.load(path)):
            fidelity = fidelity_of(gist)
            if fidelity is None:
                raise GistFileError(
                    f"gist {row} of {path} was never measured; give its --instruction too"
                )
            name = f"{path}" if row == 0 else f"{path} [{row}]"
            found.append(Found(name, gist.num_tokens, fidelity))
    return found


def measure(
    request: Request,
    instruction: str,
    file: Path | None,
    *,
    probes: Path | None,
    num_probes: int,
    save: Path | None,
    place: str | None,
    verbose: bool,
) -> Found:
    """Measure the gist of `instruction`, or the one in `file`, which then keeps the result.

    Args:
        place: of a store: its gist of `instruction` is measured, made where there is none, and
            the store keeps the result.

    Raises:
        GistkitError: the model, the gist, the prompt or the probes cannot be used, or not written.
    """
    inputs = None if probes is None else read_probes(probes)
    from gistkit.fidelity import measure_fidelity, with_fidelity
    from gistkit.gist import Gist
    from gistkit.store import GistKey

    kept = None if file is None else Gist.load(file)
    model = request.load(verbose=verbose)
    assert request.max_new_tokens is not None and request.seed is not None
    measured = partial(
        measure_fidelity,
        model,
        instruction,
        probes=inputs,
        num_probes=num_probes,
        max_new_tokens=request.max_new_tokens,
        seed=request.seed,
    )
    if place is not None:
        k = request.k(model)
        with open_store(place, make=True) as store:
            gist = store.get_or_compress(model, instruction, num_gist_tokens=k)
            fidelity = measured(gist)
            id = GistKey.of(model, instruction, k).id
            store.update(id, with_fidelity(gist, fidelity))
        return Found(f"gist {id[:SHOWN]} of {place}", gist.num_tokens, fidelity)
    gist = request.compress(model, [instruction]) if kept is None else kept.to(device=model.device)
    fidelity = measured(gist)
    target = save or file
    if target is not None:
        with_fidelity(gist, fidelity).save(target)
    return Found(str(target or "the gist"), gist.num_tokens, fidelity)


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
    safe = [one.fidelity.score >= limit for one in found]
    if as_json:
        gists = [
            {
                "gist": one.name,
                "num_gist_tokens": one.num_gist_tokens,
                "safe": ok,
                "fidelity": one.fidelity.to_json(),
            }
            for one, ok in zip(found, safe, strict=True)
        ]
        emit(dumps({"schema_version": 1, "min_fidelity": limit, "safe": all(safe), "gists": gists}))
    else:
        emit("\n\n".join(_text(one, limit, ok) for one, ok in zip(found, safe, strict=True)))
    return all(safe)


def _text(found: Found, limit: float, safe: bool) -> str:
    fidelity = found.fidelity
    source = "drawn by the model" if fidelity.drawn else "given"
    lines = [
        f"{found.name}: fidelity {fidelity.score:.3f}, "
        + (f"safe (at least {limit:g})" if safe else f"NOT SAFE (below {limit:g})"),
        f"  k = {found.num_gist_tokens}; {fidelity.probes} probes ({source}), "
        f"{fidelity.tokens} tokens; KL {fidelity.kl:.4f} nats a token",
    ]
    for name, value in fidelity.parts.items():
        shown = "    -" if value is None else f"{value:.3f}"
        lines.append(f"  {name:<11} {shown}  {MEANING[name]}")
    return "\n".join(lines)
