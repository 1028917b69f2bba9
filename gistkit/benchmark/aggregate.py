"""Benchmark files as one result: means, reductions and intervals; paired example by example.

    reduction = 1 - mean cost with the cache / mean cost without, in percent

which is what the paper reports; the mean and the median of each example's own reduction stand
beside it. Each is positive where the cache is cheaper. Instruction caching is what a gist has to
beat, so the two are set side by side wherever they were run on the same prompts.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gistkit.benchmark.rows import GIST, INSTRUCTION, STANDARD, Table

if TYPE_CHECKING:
    from numpy import ndarray

SCHEMA_VERSION = 1
NORMAL = 1.959964  # 95 % of a normal distribution lie within so many standard errors
RESAMPLES = 2000


def aggregate(tables: Sequence[Table], *, seed: int = 0) -> dict[str, Any]:
    """All tables, and gists against instruction caches, as JSON values.

    Args:
        seed: of the bootstrap.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "seed": seed,
        "files": [_file(table, seed) for table in tables],
        "against_instruction_cache": [
            {
                "gist": a.name,
                "instruction": b.name,
                "costs": _costs(a.costs[GIST], b.costs[INSTRUCTION], seed),
            }
            for a, b in _pairs(tables)
        ],
    }


def paired(
    cost: "ndarray[Any, Any]", base: "ndarray[Any, Any]", *, seed: int
) -> dict[str, float | list[float] | None]:
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
    rows = numpy.random.default_rng(seed).integers(len(saved), size=(RESAMPLES, len(saved)))
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
    drawn = 100 * (1 - cost[rows].mean(1) / base[rows].mean(1))
    each = 100 * (1 - cost / base)
    return found | {
        "reduction": float(100 * (1 - cost.mean() / base.mean())),
        "reduction_interval": [float(x) for x in numpy.quantile(drawn, [0.025, 0.975])],
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


def _file(table: Table, seed: int) -> dict[str, Any]:
    standard = table.costs[STANDARD]
    return {
        "file": table.name,
        "examples": len(table.prompts["gist_index"]),
        "prompt_tokens": float(table.prompts["num_prompt_tokens"].mean()),
        "input_tokens": float(table.prompts["num_input_tokens"].mean()),
        "tokens_removed": float(
            100
            * (
                1
                - table.prompts["num_input_tokens"].mean()
                / table.prompts["num_prompt_tokens"].mean()
            )
        ),
        "ways": {
            way: {
                "kept_tokens": float(table.kept[way].mean()),
                "costs": _costs(costs, standard, seed),
            }
            for way, costs in table.costs.items()
            if way != STANDARD
        },
    }


def _costs(
    costs: "Mapping[str, ndarray[Any, Any]]", base: "Mapping[str, ndarray[Any, Any]]", seed: int
) -> dict[str, Any]:
    shared = [name for name in costs if name in base]
    results = {name: paired(costs[name], base[name], seed=seed) for name in shared}
    return {name: {**found, "verdict": verdict(found)} for name, found in results.items()}


def _pairs(tables: Sequence[Table]) -> list[tuple[Table, Table]]:
    """Tables with gists, each with those of instruction caches on the same prompts."""
    return [
        (a, b)
        for a in tables
        for b in tables
        if GIST in a.costs and INSTRUCTION in b.costs and _same_prompts(a, b)
    ]


def _same_prompts(a: Table, b: Table) -> bool:
    """The same lengths, and where FLOPs were counted the same model."""
    names = ("num_prompt_tokens", "num_input_tokens")
    same = all(a.prompts[name].tolist() == b.prompts[name].tolist() for name in names)
    flops = [table.costs[STANDARD].get("flops") for table in (a, b)]
    if flops[0] is None or flops[1] is None:
        return same
    return same and bool(flops[0].tolist() == flops[1].tolist())
