"""From outcomes to a leaderboard: means with intervals, differences from the full prompt, a table.

Exact match has Wilson's interval, ROUGE-L and perplexity a bootstrap's; a difference is of the same
rows, by the paired bootstrap, so a method tried on few rows is compared on those. Perplexity is of
rows that fit the model with their full prompt too: the others are longer and harder, and a method
that keeps little would be scored on more of them.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from math import exp
from pathlib import Path
from statistics import fmean, median
from typing import Any

from gistkit.compare.measure import Outcome, Times
from gistkit.metrics import clean, exact_match_interval, exact_matches, rouge_scores
from gistkit.prompts import Example
from gistkit.report import error_bars, interval, new_figure, or_dash, save_figure, table
from gistkit.stats import mean_interval, paired_difference, rate_interval

MARKS = "osD^v<>PX*hdp8"
PALETTE = (*range(0, 20, 2), *range(1, 20, 2))  # of tab20: strong colours first
PANELS = {
    "exact_match": "exact match [%]",
    "rougeL": "ROUGE-L [%]",
    "perplexity": "perplexity of the reference",
}
HEAD = (
    "method",
    "budget",
    "rows",
    "kept entries",
    "KiB",
    "compression",
    "exact match",
    "to full prompt",
    "ROUGE-L",
    "perplexity",
    "/ full prompt's",
    "prepare ms",
    "first token ms",
)


def leaderboard(
    outcomes: Sequence[Outcome],
    examples: Sequence[Example],
    *,
    times: Sequence[Times | None] = (),
    seed: int,
) -> list[dict[str, Any]]:
    """An entry for each outcome, in their order; the first is the full prompt.

    Args:
        times: of each outcome, where they were taken.

    Raises:
        MissingExtraError: rouge_score is not installed.
    """
    references = [clean(example.output) for example in examples]
    scores = [_scores(outcome, references) for outcome in outcomes]
    return [
        {"method": outcome.method, "budget": outcome.budget, "missing": outcome.missing}
        if outcome.missing
        else _entry(outcome, values, outcomes[0], scores[0], references, seed)
        | _seconds(outcome, time)
        for outcome, values, time in zip_longest(outcomes, scores, times)
    ]


def _seconds(outcome: Outcome, times: Times | None) -> dict[str, float | None]:
    """Taken in turn; else the median while answering, and no first token."""
    prepare = None if times is None else times.prepare
    return {
        "prepare_seconds": median(outcome.prepare_seconds) if prepare is None else prepare,
        "first_token_seconds": None if times is None else times.first_token,
    }


def _scores(outcome: Outcome, references: Sequence[str]) -> dict[str, list[float]]:
    answers = [clean(answer) for answer in outcome.answers]
    if not answers:
        return {}
    right = references[: len(answers)]
    return {
        "exact_match": exact_matches(answers, right),
        "rougeL": rouge_scores(answers, right, kinds=("rougeL",))["rougeL"],
    }


def _entry(
    outcome: Outcome,
    values: Mapping[str, list[float]],
    full: Outcome,
    full_values: Mapping[str, list[float]],
    references: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    rows = len(outcome.answers)
    kept = fmean(outcome.kept_entries)
    answers = [clean(answer) for answer in outcome.answers]
    differences = {}
    for name, found in values.items():
        mean, interval = paired_difference(found, full_values[name][:rows], seed=seed)
        differences[name] = {"difference": mean, "interval": list(interval)}
    scored = [row for row in range(rows) if outcome.loss_tokens[row] and full.loss_tokens[row]]
    perplexity, ratio = _perplexity(outcome, full, scored, seed)
    return {
        "method": outcome.method,
        "budget": outcome.budget,
        "missing": "",
        "rows": rows,
        "kept_entries": kept,
        "kept_entries_max": max(outcome.kept_entries),
        "kept_bytes": fmean(outcome.kept_bytes),
        "compression": fmean(full.kept_entries[:rows]) / kept if kept else None,
        "exact_match": fmean(values["exact_match"]),
        "rougeL": fmean(values["rougeL"]),
        "perplexity": perplexity[0] if perplexity else None,
        "perplexity_rows": len(scored),
        "intervals": {
            "exact_match": list(exact_match_interval(answers, references[:rows])),
            "rougeL": list(mean_interval(values["rougeL"], seed=seed)),
            "perplexity": perplexity[1:] if perplexity else None,
        },
        "to_full_prompt": differences
        | {"perplexity": {"ratio": ratio[0], "interval": ratio[1:]} if ratio else None},
    }


def _perplexity(
    outcome: Outcome, full: Outcome, rows: Sequence[int], seed: int
) -> tuple[list[float], list[float]]:
    """Of these rows, and its ratio to the full prompt's: value, low, high; empty without rows."""
    if not rows:
        return [], []
    tokens = [outcome.loss_tokens[row] for row in rows]
    loss = [outcome.loss[row] for row in rows]
    more = [outcome.loss[row] - full.loss[row] for row in rows]
    found = (rate_interval(totals, tokens, seed=seed) for totals in (loss, more))
    whole, ratio = ([exp(min(700.0, nats)) for nats in (rate, *ends)] for rate, ends in found)
    return whole, ratio


def markdown(entries: Sequence[Mapping[str, Any]]) -> str:
    """The entries as a table, and a line for each that could not be run."""
    parts = [table(HEAD, (_cells(e) for e in entries if not e["missing"]), numbers=True)]
    scored, rows = entries[0]["perplexity_rows"], entries[0]["rows"]
    if scored < rows:
        parts.append(f"Perplexity: of the {scored} of {rows} rows that fit with their full prompt.")
    missing: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        if entry["missing"]:
            budgets = missing.setdefault((entry["method"], entry["missing"]), [])
            budgets.append(str(entry["budget"]))
    for (method, reason), budgets in missing.items():
        parts.append(f"{method}, budget {', '.join(budgets)}: not run: {reason.rstrip('.')}.")
    return "\n\n".join(parts) + "\n"


def _cells(entry: Mapping[str, Any]) -> list[str]:
    difference, ratio = (entry["to_full_prompt"][name] for name in ("exact_match", "perplexity"))
    first = entry["first_token_seconds"]

    def with_interval(name: str, form: str = ".1f") -> str:
        value = entry[name]
        return "-" if value is None else interval(value, entry["intervals"][name], form)

    return [
        entry["method"],
        or_dash(entry["budget"], "d"),
        str(entry["rows"]),
        f"{entry['kept_entries']:.1f}",
        f"{entry['kept_bytes'] / 1024:.1f}",
        f"{entry['compression']:.1f}×" if entry["compression"] else "-",
        with_interval("exact_match"),
        interval(difference["difference"], difference["interval"], "+.1f"),
        with_interval("rougeL"),
        with_interval("perplexity", ".3g"),
        "-" if ratio is None else interval(ratio["ratio"], ratio["interval"], ".3g"),
        f"{1000 * entry['prepare_seconds']:.1f}",
        "-" if first is None else f"{1000 * first:.1f}",
    ]


def plot(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write exact match, ROUGE-L and perplexity against kept entries, with intervals, as PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
        SaveError: the file cannot be written.
    """
    figure = new_figure(18, 4.5, extra="compare")
    from matplotlib import colormaps

    colors = colormaps["tab20"]
    shown = [entry for entry in entries if not entry["missing"]]
    names = list(dict.fromkeys(entry["method"] for entry in shown))
    for axes, (key, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for number, name in enumerate(names):
            line = sorted(
                (e for e in shown if e["method"] == name and e[key] is not None),
                key=lambda e: float(e["kept_entries"]),
            )
            values = [e[key] for e in line]
            axes.errorbar(
                [e["kept_entries"] for e in line],
                values,
                yerr=error_bars(values, [e["intervals"][key] for e in line]),
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
    save_figure(figure, path, dpi=130)
