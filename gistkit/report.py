"""Parts of reports: Markdown tables, figures, and the record of versions and machine."""

import os
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from gistkit.errors import MissingExtraError
from gistkit.files import write_atomically

PACKAGES = ("gistkit", "torch", "transformers", "tokenizers", "numpy")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: bool = False) -> str:
    """A Markdown table.

    Args:
        numbers: align all columns but the first to the right.

    >>> print(table(("k", "time"), [(1, "2 s")]))
    | k | time |
    |---|---|
    | 1 | 2 s |
    """
    rule = "|---|" + ("---:|" if numbers else "---|") * (len(head) - 1)
    cells = ([str(cell).replace("|", "\\|") for cell in row] for row in rows)
    first, *others = (f"| {' | '.join(row)} |" for row in (head, *cells))
    return "\n".join([first, rule, *others])


def interval(value: float, ends: Sequence[float], form: str = ".1f") -> str:
    """`12.3 [10.0, 14.6]`."""
    low, high = ends
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def or_dash(value: float | None, form: str = ".1f") -> str:
    return "-" if value is None else format(value, form)


def record(
    theme: str, *, schema_version: int = 1, packages: Sequence[str] = PACKAGES
) -> dict[str, Any]:
    """The head of a result file: theme, date and versions."""
    return {
        "schema_version": schema_version,
        "theme": theme,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(packages),
    }


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # of an extra that is not installed
            continue
    return found


def machine(device: object = "cpu") -> dict[str, Any]:
    """The processor, how many cores, and the name of the device (a `torch.device` or its name)."""
    processor = platform.processor() or platform.machine()
    if sys.platform == "linux":
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        processor = found[1] if found else processor
    name = str(device).upper()
    if name.startswith("CUDA"):
        import torch

        name = torch.cuda.get_device_name(str(device))
    return {"processor": processor, "cores": os.cpu_count(), "device": name}


def new_figure(width: float, height: float, *, extra: str = "eval") -> Any:
    """A figure in inches that needs no screen (raises MissingExtraError, naming `extra`)."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", extra) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path, *, dpi: int = 100) -> Path:
    """Write a figure as PNG (raises SaveError)."""
    return write_atomically(
        path, lambda temporary: figure.savefig(temporary, format="png", dpi=dpi)
    )


def error_bars(values: Sequence[float], ends: Sequence[Sequence[float]]) -> list[list[float]]:
    """How far each interval reaches below and above its value, as matplotlib takes it."""
    return [
        [max(0.0, value - low) for value, (low, _) in zip(values, ends, strict=True)],
        [max(0.0, high - value) for value, (_, high) in zip(values, ends, strict=True)],
    ]
