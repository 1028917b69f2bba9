"""`gistkit results`: the paper's tables."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from gistkit.cli.run import emit


def results(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Your own folders, laid out like the released results."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="The released results; by default $GISTKIT_SHARED/data/reference_results, "
            "or that of ../shared."
        ),
    ] = None,
    table: Annotated[
        list[str] | None, typer.Option(help="Only these tables: rouge, judge, efficiency.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write results.md, results.json, a CSV a table and rouge.png there."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
) -> None:
    """Rebuild the paper's tables: ROUGE-L, the judge's win rates, efficiency."""
    from gistkit.paper.results import build_tables, to_json, write_tables

    shared = Path(os.environ.get("GISTKIT_SHARED", "../shared"))
    folders = [reference or shared / "data" / "reference_results", *(runs or ())]
    tables = build_tables(folders, table or (), seed=seed)
    if out is not None:
        write_tables(tables, out, seed=seed)
    if as_json:
        emit(json.dumps(to_json(tables, seed=seed), ensure_ascii=False))
    else:
        emit("\n".join(each.markdown() for each in tables))
