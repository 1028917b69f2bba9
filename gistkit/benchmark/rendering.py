"""The aggregate of benchmark files for people: Markdown, and a picture of the reductions."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gistkit.benchmark.rows import GIST, INSTRUCTION, NAMES, STANDARD
from gistkit.errors import MissingExtraError
from gistkit.files import write_atomically, write_text

UNITS: Mapping[str, tuple[str, float]] = {
    "cpu_time": ("CPU time, ms", 1e-3),
    "cuda_time": ("GPU time, ms", 1e-3),
    "flops": ("GFLOPs", 1e-9),
    "macs": ("GMACs", 1e-9),
    "params": ("parameters, M", 1e-6),
    "duration": ("duration, ms", 1e3),
    "prefill": ("time to first token, ms", 1e3),
    "decode": ("decoding, ms", 1e3),
    "total": ("whole answer, ms", 1e3),
    "peak_bytes": ("peak memory, MiB", 2**-20),
    "kept_bytes": ("kept, KiB", 2**-10),
    "joules": ("energy, J", 1.0),
}
HEAD = ("saved", "reduction % [95 %]", "mean %", "median %", "t", "")


def to_markdown(result: Mapping[str, Any]) -> str:
    """Tables: each file's ways against no cache; gists against instruction caches."""
    lines = ["# Benchmark", ""]
    for file in result["files"]:
        lines += [
            f"## {file['file']}",
            "",
            f"{file['examples']} examples; prompts of {file['prompt_tokens']:.1f} tokens, of which "
            f"{file['input_tokens']:.1f} follow what is kept ({file['tokens_removed']:.1f} % fewer "
            "to read).",
            "",
        ]
        for way, found in file["ways"].items():
            kept = f"{found['kept_tokens']:.1f} tokens kept on average"
            lines += [f"### {NAMES[way]} ({kept})", ""]
            lines += [*_table(found["costs"], NAMES[STANDARD], NAMES[way])]
    for pair in result["against_instruction_cache"]:
        files = dict.fromkeys((pair["gist"], pair["instruction"]))
        lines += [
            f"## Gist cache against instruction cache ({' and '.join(files)})",
            "",
            *_table(pair["costs"], NAMES[INSTRUCTION], NAMES[GIST]),
        ]
    lines += [
        "Means over the examples; `saved` is their difference with its 95 % interval, and "
        "the reduction its share of the mean (bootstrap interval), then the mean and the median of "
        f"each example's own; t in standard errors. Seed {result['seed']}.",
        "",
    ]
    return "\n".join(lines)


def _table(costs: Mapping[str, Any], base: str, side: str) -> list[str]:
    lines = [_line("", base, side, *HEAD), _line(*["---"] * (3 + len(HEAD)))]
    for name, found in costs.items():
        if found["mean"] == found["base_mean"] == 0:
            continue  # time on a GPU where there is none
        unit, scale = UNITS[name]
        means = [f"{scale * found[key]:,.2f}" for key in ("base_mean", "mean")]
        saved, error = (f"{scale * found[key]:,.2f}" for key in ("saved", "saved_95"))
        reduction = "-"
        if found["reduction"] is not None:
            low, high = found["reduction_interval"]
            reduction = f"{found['reduction']:.2f} [{low:.2f}, {high:.2f}]"
        rest = (
            "-" if found[key] is None else f"{found[key]:.2f}"
            for key in ("mean_reduction", "median_reduction", "t")
        )
        lines.append(_line(unit, *means, f"{saved} ± {error}", reduction, *rest, found["verdict"]))
    return [*lines, ""]


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def write_report(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `report.json`, `report.md` and `report.png` (raises SaveError, MissingExtraError)."""
    return [
        write_text(folder / "report.json", json.dumps(result, indent=1) + "\n"),
        write_text(folder / "report.md", to_markdown(result)),
        _draw(result, folder / "report.png"),
    ]


def _draw(result: Mapping[str, Any], path: Path) -> Path:
    groups = [
        (f"{file['file']}: {NAMES[way]}", found["costs"])
        for file in result["files"]
        for way, found in file["ways"].items()
    ]
    groups += [
        (f"{pair['gist']}: gist cache against instruction cache", pair["costs"])
        for pair in result["against_instruction_cache"]
    ]
    bars = [
        (f"{name}, {UNITS[cost][0].split(',')[0]}", found)
        for name, costs in groups
        for cost, found in costs.items()
        if found["reduction"] is not None
    ]
    figure = new_figure(10, 1 + 0.3 * len(bars))
    axis: Any = figure.subplots()
    for row, (_, found) in enumerate(reversed(bars)):
        low, high = found["reduction_interval"]
        axis.plot([low, high], [row, row], color="tab:blue")
        axis.plot([found["reduction"]], [row], "o", color="tab:blue")
    axis.axvline(0, color="grey", linewidth=0.8)
    axis.set_yticks(range(len(bars)), [label for label, _ in reversed(bars)], fontsize="small")
    axis.set_xlabel("cost saved, % (95 % interval)")
    return save_figure(figure, path)


def new_figure(width: float, height: float) -> Any:
    """An empty figure that needs no screen; inches (raises MissingExtraError)."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "eval") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure as PNG (raises SaveError)."""
    return write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
