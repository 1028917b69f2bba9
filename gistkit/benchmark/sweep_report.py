"""The report of a sweep: JSON, Markdown, and a figure of cost, memory and break-even."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gistkit.benchmark.files import GIST, INSTRUCTION, NAMES, STANDARD
from gistkit.files import write_text
from gistkit.report import interval, new_figure, save_figure, table

Cell = Mapping[str, Any]
COLORS = {STANDARD: "tab:gray", INSTRUCTION: "tab:orange", GIST: "tab:blue"}
CACHED_PROMPTS = (1, 10, 100, 1000, 10_000)


def write_json(result: Mapping[str, Any], folder: Path) -> Path:
    return write_text(folder / "benchmark.json", json.dumps(result, indent=1) + "\n")


def write_sweep(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write benchmark.json, .md and .png (raises SaveError, MissingExtraError)."""
    return [
        write_json(result, folder),
        write_text(folder / "benchmark.md", to_markdown(result)),
        _plot(result, folder / "benchmark.png"),
    ]


def to_markdown(result: Mapping[str, Any]) -> str:
    cells: Sequence[Cell] = result["cells"]
    config = result["config"]
    about = (
        f"{result['model_type']}, {result['parameters']:,} parameters, {result['precision']}, "
        f"{result['processor']}, {result['device']}, {result['threads']} of {result['cores']} "
        "threads."
    )
    stopped = [] if result["whole"] else ["**Stopped before all was measured.**"]
    parts = [f"# Benchmark of {result['model']}", about, *stopped]
    if not cells:
        return "\n\n".join(parts) + "\n"
    first = cells[0]
    parts[1] += (
        f" {first['input_tokens']} input and {first['new_tokens']} new tokens, "
        f"{first['num_gist_tokens']} gist tokens; {config['rounds']} rounds, every mode in each "
        "in a random order. Median [95 % interval]."
    )
    modes, pairs, outputs = (list(first[name]) for name in ("modes", "ratios", "outputs"))
    names = [NAMES[mode] for mode in modes]
    kept = [mode for mode in modes if mode != STANDARD]

    def add(title: str, head: Sequence[str], row: Callable[[Cell], list[str]]) -> None:
        rows = [(cell["batch"], cell["instruction_tokens"], *row(cell)) for cell in cells]
        parts.extend([f"## {title}", table(("batch", "instruction", *head), rows)])

    def of_modes(form: Callable[[Mapping[str, Any]], str]) -> Callable[[Cell], list[str]]:
        return lambda cell: [form(cell["modes"][mode]) for mode in modes]

    def times(name: str) -> Callable[[Cell], list[str]]:
        return lambda cell: [
            *(_ms(cell["modes"][mode][name]) for mode in modes),
            *(_ratio(cell["ratios"][pair][name]) for pair in pairs),
        ]

    add("Time to first token, ms", [*names, *pairs], times("prefill"))
    add("Decoding from there, ms", [*names, *pairs], times("decode"))
    add(
        "Tokens per second, the whole answer",
        names,
        of_modes(lambda found: f"{found['tokens_per_second']:,.0f}"),
    )
    add("FLOPs to the first token, and by the formula", names, of_modes(_flops))
    add("Memory: kept for each prompt; peak while reading the batch", names, of_modes(_memory))
    add(
        "Break-even: answers after which making the cache has paid for itself",
        [*pairs, *(f"making: {NAMES[mode]}, ms" for mode in kept)],
        lambda cell: [
            *(_reuses(cell["break_even"][pair]) for pair in pairs),
            *(_ms(cell["modes"][mode]["make"]) for mode in kept),
        ],
    )
    add(
        "Greedy tokens that are equal, %",
        outputs,
        lambda cell: [f"{100 * cell['outputs'][name]:.1f}" for name in outputs],
    )
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    parts.append(
        "To the model a gist is another prompt than its instruction in full: answers may differ "
        f"from those of no cache, but not from the gist's own full pass. Seed {config['seed']}; "
        f"{versions}.\n"
    )
    return "\n\n".join(parts)


def _ms(found: Mapping[str, float]) -> str:
    ends = [1e3 * found[name] for name in ("low", "high")]
    return interval(1e3 * found["median"], ends, ".3g")


def _ratio(found: Mapping[str, float]) -> str:
    return interval(found["median"], (found["low"], found["high"]), ".3f")


def _flops(found: Mapping[str, Any]) -> str:
    text, formula = f"{found['flops'] / 1e9:,.4g} G", found["flops_by_formula"]
    if formula is None:
        return text + " (no formula)"
    return text + (" =" if found["flops"] == formula else f" (formula {formula / 1e9:,.4g} G)")


def _memory(found: Mapping[str, Any]) -> str:
    peak = "-" if found["peak_bytes"] is None else f"{found['peak_bytes'] / 2**20:,.1f} MiB"
    return f"{found['kept_bytes'] / 2**10:,.4g} KiB; {peak}"


def _reuses(found: Mapping[str, float | None]) -> str:
    values = (found[name] for name in ("reuses", "low", "high"))
    return "{} [{}, {}]".format(*("never" if v is None else f"{v:,.1f}" for v in values))


def _plot(result: Mapping[str, Any], path: Path) -> Path:
    figure = new_figure(11, 7)
    (first, flops), (memory, even) = figure.subplots(2, 2)
    cells: Sequence[Cell] = result["cells"]
    smallest = [cell for cell in cells if cell["batch"] == cells[0]["batch"]]
    lengths = [cell["instruction_tokens"] for cell in smallest]
    for mode, name in NAMES.items():
        found = [cell["modes"][mode] for cell in smallest if mode in cell["modes"]]
        if not found:
            continue
        style = {"color": COLORS[mode], "marker": "o", "label": name}
        times = [cell["prefill"] for cell in found]
        first.plot(lengths, [1e3 * time["median"] for time in times], **style)
        low, high = ([1e3 * time[end] for time in times] for end in ("low", "high"))
        first.fill_between(lengths, low, high, color=COLORS[mode], alpha=0.2)
        flops.plot(lengths, [cell["flops"] / 1e9 for cell in found], **style)
        if mode != STANDARD:
            kept = found[-1]["kept_bytes"] / 2**20
            label = f"{name}, {lengths[-1]} tokens" if mode == INSTRUCTION else name
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
