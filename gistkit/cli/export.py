"""`gistkit export` and `gistkit import`: gists as files of other programs, and back."""

from enum import StrEnum
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gistkit.cli.compress import Precision
from gistkit.cli.run import emit, quiet_libraries
from gistkit.cli.store import Json, Place
from gistkit.errors import OptionError
from gistkit.files import check_new

if TYPE_CHECKING:
    from gistkit.gist import Gist


class Format(StrEnum):
    hf_cache = "hf-cache"
    peft = "peft"
    vllm = "vllm"


def export(
    gist: Annotated[
        str,
        typer.Argument(
            metavar="GIST", help="File of gistkit compress --save, or an id (gistkit store ls)."
        ),
    ],
    format: Annotated[
        Format,
        typer.Option(
            help="hf-cache: for transformers' DynamicCache; peft: a prefix-tuning adapter; vllm: "
            "a store, how to start the engine on it, and a request."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="A folder; new, or empty.")
    ],
    model_name_or_path: Annotated[
        str, typer.Option(metavar="MODEL", help="The gist's model: folder or hub id.")
    ] = "toy",
    place: Place = None,
    precision: Annotated[Precision, typer.Option(help="That the gist was made in.")] = (
        Precision.fp32
    ),
    cache_dir: Annotated[str, typer.Option(metavar="DIR", help="Where downloads go.")] = ".cache",
    json: Json = False,
) -> None:
    """Write a gist for transformers, PEFT or vLLM; its values stay the same bit for bit.

    Decoders only: a gist of T5 is not a KV cache. docs/export.md shows how each is used.

    \b
    gistkit compress --instruction "You are Nora." --save nora.safetensors
    gistkit export nora.safetensors --format hf-cache --output nora-cache
    gistkit export nora.safetensors --format peft --output nora-adapter
    gistkit export nora.safetensors --format vllm --output nora-vllm
    """
    found = _find(gist, place)
    quiet_libraries()
    from gistkit.export import export as write
    from gistkit.model import GistModel
    from gistkit.models.loading import resolve

    model = GistModel.from_pretrained(
        model_name_or_path, dtype=precision.value, cache_dir=cache_dir
    )
    base = resolve(model_name_or_path)
    base = str(Path(base).resolve()) if Path(base).is_dir() else base
    written = write(found, model, output, format=format.value, base=base)
    report = {"schema_version": 1, "format": format.value, "folder": str(written)}
    emit(dumps(report) if json else f"wrote {written}")


def import_gist(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Written by gistkit export.")],
    save: Annotated[
        Path | None, typer.Option(metavar="FILE", help="As a file for gistkit compress --gist.")
    ] = None,
    place: Place = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE.")] = False,
    json: Json = False,
) -> None:
    """Take a gist back from any format of gistkit export: into a file, or into a store.

    With --save a file is written; otherwise the store keeps it and its id is printed. A folder
    that has changed since it was written is refused.
    """
    if save is not None:
        if place is not None:
            raise OptionError("--save does not go with --store; leave one of them out")
        check_new(save, force=force)
    from gistkit.export import restore
    from gistkit.store import GistStore

    gist = restore(folder)
    if save is not None:
        written = gist.save(save)
        emit(dumps({"schema_version": 1, "file": str(written)}) if json else f"wrote {written}")
        return
    with GistStore(GistStore.default_place() if place is None else place) as store:
        id = store.put(None, gist)
    emit(dumps({"schema_version": 1, "id": id}) if json else id)


def _find(gist: str, place: str | None) -> "Gist":
    """From a file, or from a store (raises GistFileError, OptionError)."""
    from gistkit.cli.store import open_store, whole_id
    from gistkit.gist import Gist

    if place is None and (Path(gist).exists() or "." in gist or "/" in gist):
        return Gist.load(gist)
    with open_store(place) as opened:
        return opened.load(whole_id(opened, gist))
