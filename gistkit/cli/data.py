"""`gistkit data`: make the data sets that training and evaluation read."""

from pathlib import Path
from typing import Annotated

import typer

from gistkit.cli.run import emit, show_help

data = typer.Typer(
    name="data", help="Make data sets.", callback=show_help, invoke_without_command=True
)


@data.command()
def build(
    sources: Annotated[Path, typer.Option(help="Folder that holds the original files.")],
    out: Annotated[Path, typer.Option(help="Folder to write the splits to.")] = Path(
        "data/alpaca_plus"
    ),
    verify: Annotated[
        bool, typer.Option(help="Refuse sources that are not the published files.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Report as one JSON object.")] = False,
) -> None:
    """Build Alpaca+ from its original sources, by the published recipe, checked by hash."""
    from gistkit.data.build import build_alpaca_plus

    report = build_alpaca_plus(sources, out, verify=verify)
    if json:
        from json import dumps

        emit(dumps({"schema_version": 1, **report}))
        return
    verdicts = {True: "as published", False: "NOT as published", None: "nothing to compare with"}
    for source in report["sources"].values():
        emit(f"read   {source['path']}: {verdicts[source['verified']]}")
    for file in report["files"].values():
        emit(f"wrote  {file['path']}: {file['rows']:,} rows, {verdicts[file['verified']]}")
    for line in report["missing"]:
        emit(f"missing: {line}")
