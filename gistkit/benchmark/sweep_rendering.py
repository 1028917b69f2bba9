"""The report of a sweep for people: Markdown, and a picture of cost, memory and break-even."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gistkit.benchmark.rendering import new_figure, save_figure
from gistkit.benchmark.rows import GIST, INSTRUCTION, NAMES, STANDARD
from gistkit.benchmark.sweep import write_json
from gistkit.files import write_text

Cell = Mapping[str, Any]
COLORS = {STANDARD: "tab:gray", INSTRUCTION: "tab:orange", GIST: "tab:blue"}
CACHED_PROMPTS = (1, 10, 100, 1000, 10_000)


def write_sweep(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write benchmark.json, .md and .png (raises SaveError, MissingExtraError)."""
    return [
        write_json(dict(result), folder),
        write_text(folder / "benchmark.md", to_markdown(result)),
        _draw(result, folder / "benchmark.png"),
    ]


def to_markdown(result: Mapping[str, Any]) -> str:
    """Tables by what was measured; ways side by side, a line for each cell."""
    cells: Sequence[Cell] = result["cells"]
    ways = list(cells[0]["ways"]) if cells else []
    config, first = result["config"], cells[0] if cells else {}
    lines = [
        f"# Benchmark of {result['model']}",
        "",
        f"{result['model_type']}, {result['parameters']:,} parameters, {result['precision']}, "
        f"{result['device']}, {result['threads']} of {result['cores']} threads. "
        + (
            f"{first['input_tokens']} input and {first['new_tokens']} new tokens, "
            f"{first['num_gist_tokens']} gist tokens; {config['rounds']} rounds, every way in each "
            "in a random order. Median [95 % interval]."
            if cells
            else ""
        ),
        "",
    ]
    if not result["whole"]:
        lines += ["**Stopped before all was measured.**", ""]
    if not cells:
        return "\n".join(lines)
    heads = [NAMES[way] for way in ways]
    pairs = list(first["ratios"])
    for title, name in (
        ("Time to first token, ms", "prefill"),
        ("Decoding from there, ms", "decode"),
    ):
        lines += [f"## {title}", "", *_head(*heads, *pairs)]
        for cell in cells:
            lines += _row(
                cell,
                *(_ms(cell["ways"][way][name]) for way in ways),
                *(_interval(cell["ratios"][pair][name]) for pair in pairs),
            )
        lines += [""]
    lines += ["## Tokens per second, the whole answer", "", *_head(*heads)]
    for cell in cells:
        lines += _row(cell, *(f"{cell['ways'][way]['tokens_per_second']:,.0f}" for way in ways))
    lines += ["", "## FLOPs to the first token, and what the formula says", "", *_head(*heads)]
    for cell in cells:
        lines += _row(cell, *(_flops(cell["ways"][way]) for way in ways))
    lines += ["", "## Memory: kept for each prompt; peak while reading the batch", ""]
    lines += _head(*heads)
    for cell in cells:
        lines += _row(cell, *(_memory(cell["ways"][way]) for way in ways))
    lines += ["", "## Break-even: answers after which making the cache has paid for itself", ""]
    lines += _head(*pairs, *(f"making: {NAMES[way]}, ms" for way in ways if way != STANDARD))
    for cell in cells:
        lines += _row(
            cell,
            *(_reuses(cell["break_even"][pair]) for pair in pairs),
            *(_ms(cell["ways"][way]["make"]) for way in ways if way != STANDARD),
        )
    names = list(first["outputs"])
    lines += ["", "## Greedy tokens that are equal, %", "", *_head(*names)]
    for cell in cells:
        lines += _row(cell, *(f"{100 * cell['outputs'][name]:.1f}" for name in names))
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines += [
        "",
        "To the model a gist is another prompt than its instruction in full: answers may differ "
        f"from those of no cache, but not from the gist's own full pass. Seed {config['seed']}; "
        f"{versions}.",
        "",
    ]
    return "\n".join(lines)


def _head(*names: str) -> list[str]:
    columns = ["batch", "instruction", *names]
    return ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]


def _row(cell: Cell, *values: str) -> list[str]:
    return [
        "| " + " | ".join([str(cell["batch"]), str(cell["instruction_tokens"]), *values]) + " |"
    ]


def _ms(found: Mapping[str, float]) -> str:
    return "{:.3g} [{:.3g}, {:.3g}]".format(
        *(1e3 * found[name] for name in ("median", "low", "high"))
    )


def _interval(found: Mapping[str, float]) -> str:
    return "{median:.3f} [{low:.3f}, {high:.3f}]".format(**found)


def _flops(way: Mapping[str, Any]) -> str:
    told = f"{way['flops'] / 1e9:,.4g} G"
    if way["flops_by_formula"] is None:
        return told + " (no formula)"
    equal = way["flops"] == way["flops_by_formula"]
    return told + (" =" if equal else f" (formula {way['flops_by_formula'] / 1e9:,.4g} G)")


def _memory(way: Mapping[str, Any]) -> str:
    peak = "-" if way["peak_bytes"] is None else f"{way['peak_bytes'] / 2**20:,.1f} MiB"
    return f"{way['kept_bytes'] / 2**10:,.4g} KiB; {peak}"


def _reuses(found: Mapping[str, float | None]) -> str:
    median, low, high = (found[name] for name in ("reuses", "low", "high"))
    told = ["never" if value is None else f"{value:,.1f}" for value in (median, low, high)]
    return "{} [{}, {}]".format(*told)


def _draw(result: Mapping[str, Any], path: Path) -> Path:
    figure = new_figure(11, 7)
    (first, flops), (memory, even) = figure.subplots(2, 2)
    cells: Sequence[Cell] = result["cells"]
    smallest = [cell for cell in cells if cell["batch"] == cells[0]["batch"]]
    lengths = [cell["instruction_tokens"] for cell in smallest]
    for way, name in NAMES.items():
        found = [cell["ways"][way] for cell in smallest if way in cell["ways"]]
        if not found:
            continue
        style = {"color": COLORS[way], "marker": "o", "label": name}
        times = [one["prefill"] for one in found]
        first.plot(lengths, [1e3 * one["median"] for one in times], **style)
        low, high = ([1e3 * one[end] for one in times] for end in ("low", "high"))
        first.fill_between(lengths, low, high, color=COLORS[way], alpha=0.2)
        flops.plot(lengths, [one["flops"] / 1e9 for one in found], **style)
        if way != STANDARD:
            kept = found[-1]["kept_bytes"] / 2**20
            label = f"{name}, {lengths[-1]} tokens" if way == INSTRUCTION else name
            counts = [count * kept for count in CACHED_PROMPTS]
            memory.plot(CACHED_PROMPTS, counts, **{**style, "label": label})
    for pair in smallest[0]["break_even"] if smallest else ():
        reuses = [cell["break_even"][pair]["reuses"] for cell in smallest]
        points = [(x, y) for x, y in zip(lengths, reuses, strict=True) if y is not None]
        if points:
            even.plot(*zip(*points, strict=True), marker="o", label=pair)
    batch = cells[0]["batch"] if cells else 1
    first.set(xlabel="instruction, tokens", ylabel=f"time to first token, ms (batch {batch})")
    flops.set(xlabel="instruction, tokens", ylabel="GFLOPs to the first token")
    memory.set(xlabel="cached prompts", ylabel="activations kept, MiB", xscale="log", yscale="log")
    even.set(xlabel="instruction, tokens", ylabel="answers until a cache pays")
    for axis in (first, flops, memory, even):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize="small")
    return save_figure(figure, path)
