"""`gistkit store`: list stored gists and maintain the store."""

import time
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gistkit.cli.run import emit, say
from gistkit.errors import GistFileError, OptionError

if TYPE_CHECKING:
    from gistkit.store import Entry, GistStore

SHOWN = 12  # hex digits of an id
SHORTEST = 4

Place = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="PLACE",
        help="Folder or URL (s3://...); default: $GISTKIT_STORE, or ~/.cache/gistkit/gists.",
    ),
]
Id = Annotated[str, typer.Argument(metavar="ID", help="An id, or its first digits (see store ls).")]
Json = Annotated[bool, typer.Option("--json", help="Report as one JSON object.")]

store = typer.Typer(name="store", help="List stored gists and maintain the store.")


@store.callback(invoke_without_command=True)
def _store(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@store.command("ls")
def list_gists(place: Place = None, json: Json = False) -> None:
    """List the gists, the last used first."""
    with open_store(place) as opened:
        entries = opened.entries()
    if json:
        _report("", json, gists=[entry.to_json() for entry in entries])
        return
    rows = [_row(entry) for entry in entries]
    titles = ("id", "k", "prompt", "bytes", "last used", "expires", "fidelity", "")
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in (titles, *rows):
        emit("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


@store.command()
def put(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Made by gistkit compress --save.")],
    place: Place = None,
    pin: Annotated[bool, typer.Option("--pin", help="Never evict it.")] = False,
    ttl: Annotated[float | None, typer.Option(help="Seconds until it expires.")] = None,
    json: Json = False,
) -> None:
    """Check a gist file, store it, and print its id.

    It is found by that id alone: a file cannot prove which instruction it was made from.
    """
    from gistkit.gist import Gist

    gist = Gist.load(file)
    with open_store(place, make=True) as opened:
        id = opened.put(None, gist, pinned=pin or None, ttl=ttl)
    _report(id, json, id=id)


@store.command()
def get(
    id: Id,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.")],
    place: Place = None,
    json: Json = False,
) -> None:
    """Write a gist to a file for gistkit compress --gist, without the store's own data."""
    with open_store(place) as opened:
        id = whole_id(opened, id)
        written = opened.load(id).save(output)
    _report(f"wrote {written}", json, id=id, file=str(written))


@store.command()
def rm(
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids, or their first digits.")],
    place: Place = None,
    json: Json = False,
) -> None:
    """Delete gists, pinned or not."""
    with open_store(place) as opened:
        whole = [whole_id(opened, id) for id in ids]
        for id in whole:
            opened.remove(id)
    _report(f"removed {len(whole)}", json, removed=whole)


@store.command()
def pin(
    id: Id,
    place: Place = None,
    off: Annotated[bool, typer.Option("--off", help="Unpin it.")] = False,
    json: Json = False,
) -> None:
    """Protect a gist from eviction."""
    with open_store(place) as opened:
        id = whole_id(opened, id)
        opened.pin(id, not off)
    _report(f"{'unpinned' if off else 'pinned'} {id}", json, id=id, pinned=not off)


@store.command()
def verify(place: Place = None, json: Json = False) -> None:
    """Read every gist and quarantine damaged ones. Exits with status 1 if there were any."""
    with open_store(place) as opened:
        found = opened.verify()
    damaged = found["damaged"]
    lines = [f"checked {found['checked']}, damaged {len(damaged)}", *damaged]
    _report("\n".join(lines), json, **found)
    if damaged:
        say("damaged gists are in quarantine; they are compressed again when next requested")
        raise typer.Exit(1)


@store.command()
def gc(
    place: Place = None,
    max_bytes: Annotated[int | None, typer.Option(help="Evict down to this many bytes.")] = None,
    json: Json = False,
) -> None:
    """Remove expired gists, leftovers of killed writers, and index rows without a file."""
    with open_store(place, max_bytes=max_bytes) as opened:
        removed = opened.gc()
    _report(", ".join(f"{n} {what}" for what, n in removed.items()), json, **removed)


@store.command()
def stats(place: Place = None) -> None:
    """Print entries, bytes, hits, misses, evictions and quarantined files as JSON."""
    with open_store(place) as opened:
        _report("", True, **opened.stats())


def open_store(place: str | None, *, make: bool = False, **options: Any) -> "GistStore":
    """The store at `place`, or the default one (raises GistFileError if there is none)."""
    from gistkit.store import GistStore

    place = GistStore.default_place() if place is None else place
    if not make and "://" not in place and not (Path(place) / "gists").is_dir():
        raise GistFileError(f"no store at {place}; gistkit store put creates one")
    return GistStore(place, **options)


def whole_id(opened: "GistStore", start: str) -> str:
    """The id that begins with `start` (raises OptionError, GistFileError)."""
    if len(start) == 64:
        if opened.find(start) is None:
            raise GistFileError(f"no gist {start} in {opened.place}; see gistkit store ls")
        return start
    if len(start) < SHORTEST:
        raise OptionError(f"{start!r} is too short for an id; give {SHORTEST} digits or more")
    found = [entry.id for entry in opened.entries() if entry.id.startswith(start)]
    if len(found) != 1:
        many = f"{len(found)} gists begin" if found else "no gist begins"
        raise OptionError(f"{many} with {start[:80]!r} in {opened.place}; see gistkit store ls")
    return found[0]


def _row(entry: "Entry") -> tuple[str, ...]:
    def when(seconds: float | None) -> str:
        return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))

    return (
        entry.id[:SHOWN],
        str(entry.num_tokens),
        str(entry.instruction_length),
        str(entry.num_bytes),
        when(entry.last_used),
        when(entry.expires),
        "" if entry.fidelity is None else f"{entry.fidelity:.3f}",
        "pinned" if entry.pinned else "",
    )


def _report(text: str, json: bool, **facts: Any) -> None:
    emit(dumps({"schema_version": 1, **facts}) if json else text)
