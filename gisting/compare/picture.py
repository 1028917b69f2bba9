"""The leaderboard as a picture: quality against cache entries kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gisting.errors import MissingExtraError
from gisting.files import write_atomically

MARKS = "osD^v<>PX*hdp8"
PALETTE = (*range(0, 20, 2), *range(1, 20, 2))  # of tab20: strong colours first


def draw(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write exact match and ROUGE-L against kept entries, with their intervals, as PNG.

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
    figure = Figure(figsize=(13, 4.5), layout="constrained")
    for place, (key, label) in enumerate(
        (("exact_match", "exact match"), ("rougeL", "ROUGE-L")), 1
    ):
        axes = figure.add_subplot(1, 2, place)
        for number, name in enumerate(names):
            line = sorted(
                (e for e in shown if e["method"] == name), key=lambda e: float(e["kept_entries"])
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
        axes.set_ylabel(f"{label} [%]")
        axes.set_ylim(-3, 103)
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=130))
