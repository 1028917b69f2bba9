"""Benchmark files as one report: means, reductions and intervals, paired example by example.

    reduction = 1 - mean cost with the cache / mean cost without, in percent

which is what the paper reports, along with the mean and the median of each example's own reduction.
Each is positive where the cache is cheaper. Instruction caching is the baseline that a gist has to
beat, so the two are compared wherever they were run on the same prompts.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistkit.benchmark.files import GIST, INSTRUCTION, NAMES, STANDARD, Table
from gistkit.files import write_text
from gistkit.report import interval, new_figure, or_dash, save_figure, table
from gistkit.stats import bootstrap

if TYPE_CHECKING:
    from numpy import ndarray

    Array = ndarray[Any, Any]

SCHEMA_VERSION = 1
NORMAL = 1.959964  # 95 % of a normal distribution lie within so many standard errors
RESAMPLES = 2000
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


def aggregate(tables: Sequence[Table], *, seed: int = 0) -> dict[str, Any]:
    """All files, and gists against instruction caches, as JSON values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "seed": seed,
        "files": [_file(file, seed) for file in tables],
        "against_instruction_cache": [
            {
                "gist": a.name,
                "instruction": b.name,
                "costs": _costs(a.costs[GIST], b.costs[INSTRUCTION], seed),
            }
            for a in tables
            for b in tables
            if GIST in a.costs and INSTRUCTION in b.costs and _same_prompts(a, b)
        ],
    }


def paired(cost: "Array", base: "Array", *, seed: int) -> dict[str, float | list[float] | None]:
    """How much less `cost` is than `base`, example by example.

    Returns:
        `mean` and `base_mean`; `saved`, the mean difference, and `saved_95`, how far its 95 %
        interval reaches to either side; in percent `reduction` (of the means) with its bootstrap
        interval, `mean_reduction` and `median_reduction` (of each example); `t`, the mean
        difference in standard errors. None where it would be a division by zero.
    """
    import numpy

    saved = base - cost
    error = saved.std(ddof=1) / len(saved) ** 0.5 if len(saved) > 1 else 0.0
    found: dict[str, float | list[float] | None] = {
        "mean": float(cost.mean()),
        "base_mean": float(base.mean()),
        "saved": float(saved.mean()),
        "saved_95": float(NORMAL * error),
        "t": float(saved.mean() / error) if error else None,
    }
    names = ("reduction", "reduction_interval", "mean_reduction", "median_reduction")
    if not (base > 0).all():
        return found | dict.fromkeys(names)
    ends = bootstrap(
        lambda rows: 100 * (1 - cost[rows].mean(1) / base[rows].mean(1)),
        len(cost),
        seed=seed,
        samples=RESAMPLES,
    )
    each = 100 * (1 - cost / base)
    return found | {
        "reduction": float(100 * (1 - cost.mean() / base.mean())),
        "reduction_interval": list(ends),
        "mean_reduction": float(each.mean()),
        "median_reduction": float(numpy.median(each)),
    }


def verdict(found: Mapping[str, Any]) -> str:
    """ "better" or "worse" where the interval of the difference leaves out zero; "same" if all is.

    Else "open".
    """
    if found["saved"] == found["saved_95"] == 0:
        return "same"
    if abs(found["saved"]) <= found["saved_95"]:
        return "open"
    return "better" if found["saved"] > 0 else "worse"


def _file(file: Table, seed: int) -> dict[str, Any]:
    prompt, new = (
        float(file.prompts[name].mean()) for name in ("num_prompt_tokens", "num_input_tokens")
    )
    return {
        "file": file.name,
        "examples": len(file.prompts["gist_index"]),
        "prompt_tokens": prompt,
        "input_tokens": new,
        "tokens_removed": 100 * (1 - new / prompt),
        "modes": {
            mode: {
                "kept_tokens": float(file.kept[mode].mean()),
                "costs": _costs(costs, file.costs[STANDARD], seed),
            }
            for mode, costs in file.costs.items()
            if mode != STANDARD
        },
    }


def _costs(costs: "Mapping[str, Array]", base: "Mapping[str, Array]", seed: int) -> dict[str, Any]:
    results = {name: paired(costs[name], base[name], seed=seed) for name in costs if name in base}
    return {name: {**found, "verdict": verdict(found)} for name, found in results.items()}


def _same_prompts(a: Table, b: Table) -> bool:
    """The same lengths, and where FLOPs were counted the same model."""
    names = ("num_prompt_tokens", "num_input_tokens")
    same = all(a.prompts[name].tolist() == b.prompts[name].tolist() for name in names)
    flops, others = (file.costs[STANDARD].get("flops") for file in (a, b))
    return same and (flops is None or others is None or flops.tolist() == others.tolist())


def to_markdown(result: Mapping[str, Any]) -> str:
    parts = ["# Benchmark"]
    for file in result["files"]:
        parts += [
            f"## {file['file']}",
            f"{file['examples']} examples; prompts of {file['prompt_tokens']:.1f} tokens, of which "
            f"{file['input_tokens']:.1f} follow what is kept ({file['tokens_removed']:.1f} % fewer "
            "to read).",
        ]
        for mode, found in file["modes"].items():
            parts += [
                f"### {NAMES[mode]} ({found['kept_tokens']:.1f} tokens kept on average)",
                _table(found["costs"], NAMES[STANDARD], NAMES[mode]),
            ]
    for pair in result["against_instruction_cache"]:
        files = dict.fromkeys((pair["gist"], pair["instruction"]))
        parts += [
            f"## Gist cache against instruction cache ({' and '.join(files)})",
            _table(pair["costs"], NAMES[INSTRUCTION], NAMES[GIST]),
        ]
    parts.append(
        "Means over the examples; `saved` is their difference with its 95 % interval, and "
        "the reduction its share of the mean (bootstrap interval), then the mean and the median of "
        f"each example's own; t in standard errors. Seed {result['seed']}.\n"
    )
    return "\n\n".join(parts)


def _table(costs: Mapping[str, Any], base: str, side: str) -> str:
    rows = []
    for name, found in costs.items():
        if found["mean"] == found["base_mean"] == 0:
            continue  # time on a GPU where there is none
        unit, scale = UNITS[name]
        base_mean, mean, saved, error = (
            f"{scale * found[key]:,.2f}" for key in ("base_mean", "mean", "saved", "saved_95")
        )
        reduction = "-"
        if found["reduction"] is not None:
            reduction = interval(found["reduction"], found["reduction_interval"], ".2f")
        rest = [or_dash(found[key], ".2f") for key in ("mean_reduction", "median_reduction", "t")]
        rows.append(
            (unit, base_mean, mean, f"{saved} ± {error}", reduction, *rest, found["verdict"])
        )
    return table(("", base, side, *HEAD), rows)


def write_report(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `report.json`, `report.md` and `report.png` (raises SaveError, MissingExtraError)."""
    return [
        write_text(folder / "report.json", json.dumps(result, indent=1) + "\n"),
        write_text(folder / "report.md", to_markdown(result)),
        _plot(result, folder / "report.png"),
    ]


def _plot(result: Mapping[str, Any], path: Path) -> Path:
    groups = [
        (f"{file['file']}: {NAMES[mode]}", found["costs"])
        for file in result["files"]
        for mode, found in file["modes"].items()
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
        axis.plot(found["reduction_interval"], [row, row], color="tab:blue")
        axis.plot([found["reduction"]], [row], "o", color="tab:blue")
    axis.axvline(0, color="grey", linewidth=0.8)
    axis.set_yticks(range(len(bars)), [label for label, _ in reversed(bars)], fontsize="small")
    axis.set_xlabel("cost saved, % (95 % interval)")
    return save_figure(figure, path)
