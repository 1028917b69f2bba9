"""The curves of a run as one picture, drawn from its log file."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gistkit.errors import SaveError
from gistkit.files import write_atomically
from gistkit.training.jsonl import Line, read_lines

PLOT_NAME = "training.png"
log = logging.getLogger(__name__)


def draw(log_file: Path) -> Path | None:
    """Loss on the left, scores of the splits on the right, as `training.png` beside the log.

    A run is not worth less for want of its picture: what goes wrong is a warning. None where there
    is nothing to draw.
    """
    lines = read_lines(log_file)
    losses = {"training": _points(lines, "loss")} | _curves(lines, "loss")
    scores = {
        f"{split} {metric}": points
        for metric in ("rougeL", "exact_match")
        for split, points in _curves(lines, metric).items()
    }
    if not any(losses.values()):
        return None
    try:
        return _write(losses, scores, log_file.with_name(PLOT_NAME))
    except (ImportError, SaveError) as error:
        log.warning("no %s: %s", PLOT_NAME, error)
        return None


Points = list[tuple[int, float]]


def _points(lines: Sequence[Line], name: str) -> Points:
    return [(line["step"], line[name]) for line in lines if line.get(name) is not None]


def _curves(lines: Sequence[Line], metric: str) -> dict[str, Points]:
    """Points by split, of every `eval_{split}_{metric}`."""
    names = sorted({name for line in lines for name in line})
    ending = f"_{metric}"
    return {
        name.removeprefix("eval_").removesuffix(ending): _points(lines, name)
        for name in names
        if name.startswith("eval_") and name.endswith(ending)
    }


def _write(losses: dict[str, Points], scores: dict[str, Points], path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a screen
    axes: Any = figure.subplots(1, 2)
    for axis, curves in zip(axes, (losses, scores), strict=True):
        for name, points in curves.items():
            if points:
                marker = "o" if len(points) == 1 else None
                axis.plot(*zip(*points, strict=True), label=name, marker=marker)
        if any(curves.values()):
            axis.legend(fontsize="small")
    axes[0].set(xlabel="step", ylabel="loss (nats a token)")
    axes[1].set(xlabel="step", ylabel="score (%)")
    return write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
