"""The leaderboard as a picture: quality against cache entries kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gistkit.errors import MissingExtraError
from gistkit.files import write_atomically

MARKS = "osD^v<>PX*hdp8"
PANELS = {
    "exact_match": "exact match [%]",
    "rougeL": "ROUGE-L [%]",
    "perplexity": "perplexity of the reference",
}
PALETTE = (*range(0, 20, 2), *range(1, 20, 2))  # of tab20: strong colours first


def draw(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write exact match, ROUGE-L and perplexity against kept entries, with intervals, as PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
        SaveError: the file cannot be written.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "compare") from error
    shown = [entry for entry in entries if not entry["missing"]]
    names = list(dict.fromkeys(entry["method"] for entry in shown))
    colors = colormaps["tab20"]
    figure = Figure(figsize=(18, 4.5), layout="constrained")
    for place, (key, label) in enumerate(PANELS.items(), 1):
        axes = figure.add_subplot(1, len(PANELS), place)
        for number, name in enumerate(names):
            line = sorted(
                (e for e in shown if e["method"] == name and e[key] is not None),
                key=lambda e: float(e["kept_entries"]),
            )
            values = [e[key] for e in line]
            errors = [
                [max(0.0, v - e["intervals"][key][0]) for v, e in zip(values, line, strict=True)],
                [max(0.0, e["intervals"][key][1] - v) for v, e in zip(values, line, strict=True)],
            ]
            axes.errorbar(
                [e["kept_entries"] for e in line],
                values,
                yerr=errors,
                marker=MARKS[number % len(MARKS)],
                color=colors(PALETTE[number % len(PALETTE)]),
                capsize=2,
                linewidth=1,
                label=name,
            )
        axes.set_xlabel("cache entries kept of an instruction (mean)")
        axes.set_ylabel(label)
        if key == "perplexity":
            axes.set_yscale("log")
        else:  # all of the scale, or as much of it as is needed
            top = max(e["intervals"][key][1] for e in shown) or 100.0
            axes.set_ylim(-0.03 * top, 1.03 * top)
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))
