"""`gistkit checkpoint`: what can be done to a trainer's checkpoints."""

from pathlib import Path
from typing import Annotated

import typer

from gistkit.cli.run import emit, quiet_libraries, show_help

checkpoint = typer.Typer(
    name="checkpoint", help="Convert checkpoints.", callback=show_help, invoke_without_command=True
)


@checkpoint.command()
def consolidate(
    folder: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint in shards.")],
    out: Annotated[Path, typer.Option(help="Folder to write the model to.")],
    precision: Annotated[
        str | None, typer.Option(help="fp32 | bf16 | fp16; default: as stored.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Report as one JSON object.")] = False,
) -> None:
    """Make a plain model of a checkpoint in shards (DeepSpeed ZeRO-3, FSDP).

    What is written loads with GistModel.from_pretrained, gistkit compress and transformers. Shards
    are pickles: only tensors and plain values are read from them, and nothing in them is run.
    """
    quiet_libraries()
    from gistkit.training.shards import consolidate as make_whole

    written = make_whole(folder, out, dtype=precision)
    if json:
        from json import dumps

        emit(dumps({"schema_version": 1, "checkpoint": str(folder), "out": str(written)}))
    else:
        emit(f"wrote {written}")
