"""`gistkit results`: the paper's tables."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from gistkit.cli.run import emit
from gistkit.errors import DataError

TABLES = ("rouge", "judge", "efficiency")


def results(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of our own, laid out like the released results."),
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
    from gistkit.files import write_text
    from gistkit.paper.results.paper import efficiency_table, judge_table, rouge_table
    from gistkit.paper.results.picture import draw

    wanted = table or TABLES
    for name in wanted:
        if name not in TABLES:
            raise typer.BadParameter(f"no table {name!r}; choose of {', '.join(TABLES)}")
    folders = [reference or default_reference(), *(runs or ())]
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; name the released results by --reference")
    build = {
        "rouge": lambda: rouge_table(folders, seed=seed),
        "judge": lambda: judge_table(folders),
        "efficiency": lambda: efficiency_table(folders, seed=seed),
    }
    tables = [build[name]() for name in wanted]
    if not any(one.rows for one in tables):
        raise DataError(
            f"{folders[0]}: holds no results; expected model_outputs/, chatgpt/ or benchmarking/"
        )
    content = {"schema_version": 1, "seed": seed} | {t.name: list(t.rows) for t in tables}
    data = json.dumps(content, ensure_ascii=False)
    text = "\n".join(one.markdown() for one in tables)
    if out is not None:
        write_text(out / "results.md", text)
        write_text(out / "results.json", data + "\n")
        for one in tables:
            write_text(out / f"{one.name}.csv", one.csv())
            if one.name == "rouge":
                draw(one, out / "rouge.png")
    emit(data if as_json else text)


def default_reference() -> Path:
    """The released results beside the repository."""
    return Path(os.environ.get("GISTKIT_SHARED", "../shared")) / "data" / "reference_results"
