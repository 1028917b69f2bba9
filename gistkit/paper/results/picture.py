"""A picture of the ROUGE-L table: a panel for each split, a group of bars for each model."""

from pathlib import Path

from gistkit.errors import MissingExtraError
from gistkit.files import write_atomically
from gistkit.paper.results.tables import Table


def draw(table: Table, path: Path) -> None:
    """Write ROUGE-L with its intervals as PNG.

    Published values without their answers are left out.

    Raises:
        MissingExtraError: matplotlib is not installed.
        SaveError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "eval") from error
    rows = [row for row in table.rows if row.get("RL") is not None]
    splits = list(dict.fromkeys(str(row["split"]) for row in rows))
    figure = Figure(figsize=(4 * max(1, len(splits)), 5), layout="constrained")
    for place, split in enumerate(splits):
        shown = [row for row in rows if row["split"] == split]
        names = [f"{r['model']}-{r['condition']}-{r['num_gist_tokens']}" for r in shown]
        values = [float(row["RL"] or 0) for row in shown]
        errors = [
            [max(0.0, v - float(r["low"] or 0)) for v, r in zip(values, shown, strict=True)],
            [max(0.0, float(r["high"] or 0) - v) for v, r in zip(values, shown, strict=True)],
        ]
        axes = figure.add_subplot(1, len(splits), place + 1)
        axes.barh(range(len(shown)), values, xerr=errors)
        axes.set_yticks(range(len(shown)), names, fontsize=6)
        axes.invert_yaxis()
        axes.set_title(split)
        axes.set_xlabel("ROUGE-L [%]")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))
