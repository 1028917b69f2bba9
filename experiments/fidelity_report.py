"""AUROC, calibration and the threshold of `experiments.fidelity`, from its rows."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from gistkit.fidelity import PARTS
from gistkit.report import table

Row = dict[str, Any]
Target = Callable[[Row], list[bool]]

TARGETS: dict[str, Target] = {
    "wrong": lambda row: row["wrong"],
    "lost": lambda row: [a and not b for a, b in zip(row["wrong"], row["full_wrong"], strict=True)],
    "differs": lambda row: row["differs"],
}
SUBSETS: dict[str, set[str]] = {
    "all": {"seen", "unseen", "shorter", "longer", "untrained tasks", "noise"},
    "trained tasks": {"seen", "unseen", "shorter", "longer"},
    "trained, not shorter": {"seen", "unseen", "longer"},
    "noise": {"noise"},
}
RESAMPLES = 1000
GRID = [round(0.5 + 0.01 * step, 2) for step in range(50)]
TOLERATED = 0.01
BINS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.01)


def to_markdown(rows: Sequence[Row]) -> tuple[str, Row]:
    """The report, and its numbers."""
    chosen = [row for row in rows if row["part"] == "choosing"]
    held = [row for row in rows if row["part"] == "reporting"]
    threshold = choose(chosen)
    groups, areas, bins = [], [], []
    summary: Row = {"threshold": threshold, "auroc": [], "groups": [], "calibration": []}
    lines = [
        "# Does the fidelity of a gist predict a wrong answer?",
        "",
        f"`python -m experiments.fidelity`: {len(held)} gists of the toy model, 8 test inputs "
        f"each, and {len(chosen)} others of another seed, on which the threshold was chosen. "
        "*wrong*: not the right answer; *lost*: wrong where the full prompt is right; "
        "*differs*: not the full prompt's answer. *given*: 8 other inputs of the task as probes, "
        "without answers; *drawn*: probes by the model itself. Neither sees a test input.",
        "",
        "## What is wrong, by group (percent of answers)",
        "",
    ]
    for group in dict.fromkeys(row["group"] for row in held):
        selected = [row for row in held if row["group"] == group]
        found = {name: _share(selected, target) for name, target in TARGETS.items()}
        found["full_wrong"] = _share(selected, lambda row: row["full_wrong"])
        scores = {p: float(np.mean([r[p]["score"] for r in selected])) for p in ("given", "drawn")}
        summary["groups"].append({"group": group, "gists": len(selected), **found, **scores})
        shares = (found["wrong"], found["full_wrong"], found["lost"], found["differs"])
        cells = [f"{100 * share:.1f}" for share in shares]
        groups.append((group, len(selected), *cells, *(f"{s:.3f}" for s in scores.values())))
    head = (
        "group", "gists", "wrong", "full prompt wrong", "lost", "differs", "score, given", "drawn",
    )  # fmt: skip
    lines += [
        table(head, groups),
        "",
        "## AUROC",
        "",
        "Of a single answer, by the score or part of its gist; 95 % interval, bootstrap over "
        "instructions. *per gist*: more than half of its answers are. A part counts where it "
        "could be measured.",
        "",
    ]
    for probes in ("given", "drawn"):
        for subset, names in SUBSETS.items():
            for what in ("score", *PARTS):
                selected = [r for r in held if r["group"] in names and what in r[probes]]
                cells = []
                for name, per_gist in (*((t, False) for t in TARGETS), *_PER_GIST):
                    found = _auroc_of(selected, probes, what, TARGETS[name], per_gist=per_gist)
                    summary["auroc"].append(
                        {"probes": probes, "subset": subset, "what": what, "target": name}
                        | {"per_gist": per_gist, "gists": len(selected), **found}
                    )
                    cells.append(_cell(found))
                areas.append((probes, subset, what, *cells))
    head = (
        "probes", "subset", "what", "wrong", "lost", "differs", "per gist: wrong", "differs",
    )  # fmt: skip
    lines += [
        table(head, areas),
        "",
        "## Calibration (given probes; percent of answers)",
        "",
    ]
    for low, high in pairwise(BINS):
        selected = [row for row in held if low <= row["given"]["score"] < high]
        found = {name: _share(selected, target) for name, target in TARGETS.items()}
        summary["calibration"].append({"low": low, "high": high, "gists": len(selected), **found})
        cells = ["" if not selected else f"{100 * share:.1f}" for share in found.values()]
        bins.append((f"{low:g} to {min(high, 1):g}", len(selected), *cells))
    lines += [table(("score", "gists", "wrong", "lost", "differs"), bins)]
    lines += ["", "## Threshold", "", *_threshold(chosen, held, threshold)]
    return "\n".join(lines) + "\n", summary


_PER_GIST = (("wrong", True), ("differs", True))


def choose(rows: Sequence[Row]) -> float:
    """The lowest score at and above which at most `TOLERATED` of the answers differ."""
    for limit in GRID:
        kept = [row for row in rows if row["given"]["score"] >= limit]
        if kept and _share(kept, TARGETS["differs"]) <= TOLERATED:
            return limit
    return GRID[-1]


def auroc(scores: Any, bad: Any, good: Any) -> float:
    """Probability that a bad answer has a lower score than a good one, ties counting half.

    Args:
        scores, bad, good: [N] score of a gist, and how many of its answers are bad and good.
    """
    values, index = np.unique(scores, return_inverse=True)
    worse = np.bincount(index, bad, len(values))
    better = np.bincount(index, good, len(values))
    if not worse.sum() or not better.sum():
        return float("nan")
    above = better.sum() - better.cumsum()
    return float((worse * (above + better / 2)).sum() / worse.sum() / better.sum())


def _auroc_of(
    rows: Sequence[Row], probes: str, what: str, target: Target, *, per_gist: bool
) -> Row:
    hits = np.array([sum(target(row)) for row in rows], float)
    sizes = np.array([len(target(row)) for row in rows], float)
    bad = (hits > sizes / 2).astype(float) if per_gist else hits
    good = 1 - bad if per_gist else sizes - hits
    scores = np.array([row[probes][what] for row in rows])
    value = auroc(scores, bad, good)
    if np.isnan(value):
        return {"auroc": None, "low": None, "high": None}
    rng = np.random.default_rng(0)
    samples = [rng.integers(len(rows), size=len(rows)) for _ in range(RESAMPLES)]
    drawn = np.array([auroc(scores[s], bad[s], good[s]) for s in samples])
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return {"auroc": value, "low": float(low), "high": float(high)}


def _share(rows: Sequence[Row], target: Target) -> float:
    answers = [answer for row in rows for answer in target(row)]
    return sum(answers) / len(answers) if answers else float("nan")


def _cell(found: Row) -> str:
    if found["auroc"] is None:
        return "-"
    return f"{found['auroc']:.3f} [{found['low']:.2f}, {found['high']:.2f}]"


def _threshold(chosen: Sequence[Row], held: Sequence[Row], limit: float) -> list[str]:
    kept = [row for row in held if row["given"]["score"] >= limit]
    refused = [row for row in held if row["given"]["score"] < limit]

    def shares(rows: Sequence[Row]) -> str:
        return ", ".join(
            f"{name} {100 * _share(rows, target):.1f} %" for name, target in TARGETS.items()
        )

    return [
        f"Lowest score at and above which at most {100 * TOLERATED:g} % of answers differ, on "
        f"the {len(chosen)} gists for choosing: **{limit:g}**. On the {len(held)} reported: "
        f"{len(kept)} reach it ({shares(kept)}); {len(refused)} do not ({shares(refused)}).",
    ]
