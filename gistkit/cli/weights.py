"""`gistkit weights`: weight diffs, made, recovered and verified."""

from pathlib import Path
from typing import Annotated

import typer

from gistkit.cli.run import emit, quiet_libraries, show_help, tensor_bar

Raw = Annotated[str, typer.Option(metavar="MODEL", help="The base: a folder or hub id.")]
Diff = Annotated[str, typer.Option(metavar="MODEL", help="The diff: a folder or hub id.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="The folder to make.")]
Cache = Annotated[str, typer.Option(metavar="DIR", help="Where downloads go.")]
Json = Annotated[bool, typer.Option("--json", help="Report as one JSON object.")]

weights = typer.Typer(
    name="weights",
    help="Make, recover and verify weight diffs.",
    callback=show_help,
    invoke_without_command=True,
)


@weights.command()
def diff(
    path_raw: Raw,
    path_tuned: Annotated[
        str, typer.Option(metavar="MODEL", help="The tuned model: a folder or hub id.")
    ],
    path_diff: Out,
    cache_dir: Cache = ".cache",
    json: Json = False,
) -> None:
    """Write what must be added to a base model to make the tuned one of it.

    The format is the published one (float32, the base extended by a zero row for <GIST>), beside it
    a manifest of SHA-256 digests and corrections that make recovery exact, bit for bit.

    \b
    gistkit weights diff --path_raw llama-7b --path_tuned tuned --path_diff diff
    """
    quiet_libraries()
    from gistkit.models.loading import fetch
    from gistkit.paper.weight_diff import make_diff

    raw, tuned = fetch(path_raw, cache_dir=cache_dir), fetch(path_tuned, cache_dir=cache_dir)
    with tensor_bar() as progress:
        manifest = make_diff(raw, tuned, path_diff, progress=progress)
    corrections = sum(manifest.corrections().values())
    if json:
        _report(path_diff=str(path_diff), tensors=len(manifest.tensors), corrections=corrections)
    else:
        emit(f"wrote {path_diff}: {len(manifest.tensors)} tensors, {corrections} corrections")


@weights.command()
def recover(
    path_raw: Raw,
    path_diff: Diff,
    path_tuned: Out,
    precision: Annotated[
        str | None, typer.Option(help="fp32 | bf16 | fp16; default: the tuned model's.")
    ] = None,
    check_integrity_naively: Annotated[
        bool, typer.Option(help="Compare the sum of a released model's weights.")
    ] = True,
    cache_dir: Cache = ".cache",
    json: Json = False,
) -> None:
    """Add a weight diff to its base model.

    Checked tensor by tensor where the diff has a manifest; released diffs by the published sum.

    \b
    gistkit weights recover --path_raw llama-7b --path_diff jayelm/llama-7b-gist-1 --path_tuned out
    """
    quiet_libraries()
    from gistkit.models.loading import fetch
    from gistkit.paper.weight_diff import recover as recover_tuned

    raw, changes = fetch(path_raw, cache_dir=cache_dir), fetch(path_diff, cache_dir=cache_dir)
    with tensor_bar() as progress:
        recover_tuned(
            raw,
            changes,
            path_tuned,
            dtype=precision,
            check_integrity_naively=check_integrity_naively,
            name=path_diff,
            progress=progress,
        )
    if json:
        _report(path_tuned=str(path_tuned))
    else:
        emit(f"wrote {path_tuned}")


@weights.command()
def verify(
    path_diff: Diff,
    path_raw: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Is this its base?", show_default=False)
    ] = None,
    path_tuned: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Is this the tuned one?", show_default=False)
    ] = None,
    cache_dir: Cache = ".cache",
    json: Json = False,
) -> None:
    """Compare a diff, its base and the tuned model with the diff's manifest; writes nothing.

    A released diff has none: there, with --path-raw, the sum of all recovered weights is compared.
    """
    quiet_libraries()
    from gistkit.models.loading import fetch
    from gistkit.paper.weight_diff import verify as compare

    with tensor_bar() as progress:
        verdict = compare(
            fetch(path_diff, cache_dir=cache_dir),
            raw=None if path_raw is None else fetch(path_raw, cache_dir=cache_dir),
            tuned=None if path_tuned is None else fetch(path_tuned, cache_dir=cache_dir),
            name=path_diff,
            progress=progress,
        )
    if json:
        _report(
            path_diff=path_diff,
            tensors=verdict.tensors,
            checked=list(verdict.checked),
            weight_sum=verdict.weight_sum,
            published_sum=verdict.published_sum,
        )
        return
    sums = ""
    if verdict.weight_sum is not None:
        sums = f"; weights sum to {verdict.weight_sum:.4f} (published {verdict.published_sum:.4f})"
    emit(f"intact: {', '.join(verdict.checked)}, {verdict.tensors} tensors each{sums}")


def _report(**facts: object) -> None:
    from json import dumps

    emit(dumps({"schema_version": 1, **facts}))
