"""From outcomes to a leaderboard: means with intervals, differences from the full prompt, a table.

The metrics are those of `gistkit.metrics.METRICS` that texts alone decide; the table and the figure
show the headline ones. A difference is of the same rows, by the paired bootstrap, so a method tried
on few rows is compared on those. Perplexity is of rows that fit the model with their full prompt
too: the others are longer and harder, and a method that keeps little would be scored on more of
them.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import zip_longest
from math import exp
from pathlib import Path
from statistics import fmean, median
from typing import Any

from gistkit.compare.measure import Outcome, Times
from gistkit.metrics import METRICS, Metric, Scores, difference, score
from gistkit.prompts import Example
from gistkit.report import error_bars, interval, new_figure, or_dash, save_figure, table
from gistkit.stats import rate_interval

MARKS = "osD^v<>PX*hdp8H+x123"
PALETTE = (*range(0, 20, 2), *range(1, 20, 2))  # of tab20: strong colours first
PERPLEXITY = METRICS["perplexity"]
TEXT_METRICS = [m for m in METRICS.values() if m.headline and m.score is not None]


def leaderboard(
    outcomes: Sequence[Outcome],
    examples: Sequence[Example],
    *,
    times: Sequence[Times | None] = (),
    seed: int,
) -> list[dict[str, Any]]:
    """An entry for each outcome, the first being the full prompt's (raises MissingExtraError)."""
    references = tuple(example.output for example in examples)
    return [
        {"method": outcome.method, "budget": outcome.budget, "missing": outcome.missing}
        if outcome.missing
        else _entry(outcome, outcomes[0], references, seed) | _seconds(outcome, time)
        for outcome, time in zip_longest(outcomes, times)
    ]


def _seconds(outcome: Outcome, times: Times | None) -> dict[str, float | None]:
    """Taken in turn; else the median while answering, and no first token."""
    prepare = None if times is None else times.prepare
    return {
        "prepare_seconds": median(outcome.prepare_seconds) if prepare is None else prepare,
        "first_token_seconds": None if times is None else times.first_token,
    }


@lru_cache(maxsize=256)  # the leaderboard is written after every method
def _scores(answers: tuple[str, ...], references: tuple[str, ...]) -> Scores:
    return score(answers, references)


def _entry(
    outcome: Outcome, full: Outcome, references: tuple[str, ...], seed: int
) -> dict[str, Any]:
    rows = len(outcome.answers)
    kept = fmean(outcome.kept_entries)
    scores, full_scores = (
        _scores(tuple(answers[:rows]), references[:rows])
        for answers in (outcome.answers, full.answers)
    )
    report = scores.report(seed=seed)
    scored = [row for row in range(rows) if outcome.loss_tokens[row] and full.loss_tokens[row]]
    perplexity, ratio = _perplexity(outcome, full, scored, seed)
    report["intervals"]["perplexity"] = perplexity[1:] if perplexity else None
    return {
        "method": outcome.method,
        "budget": outcome.budget,
        "missing": "",
        "kept_entries": kept,
        "kept_entries_max": max(outcome.kept_entries),
        "kept_bytes": fmean(outcome.kept_bytes),
        "compression": fmean(full.kept_entries[:rows]) / kept if kept else None,
        **report,
        "perplexity": perplexity[0] if perplexity else None,
        "perplexity_rows": len(scored),
        "to_full_prompt": {
            **difference(scores, full_scores, seed=seed),
            "perplexity": {"ratio": ratio[0], "interval": ratio[1:]} if ratio else None,
        },
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
    parts = [table(_head(), (list(_cells(e)) for e in entries if not e["missing"]), numbers=True)]
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


def _head() -> list[str]:
    head = ["method", "budget", "rows", "kept entries", "KiB", "compression"]
    for metric in TEXT_METRICS:
        head += [metric.label, "to full prompt"]
    return [*head, PERPLEXITY.label, "/ full prompt's", "prepare ms", "first token ms"]


def _cells(entry: Mapping[str, Any]) -> Iterator[str]:
    yield entry["method"]
    yield or_dash(entry["budget"], "d")
    yield str(entry["rows"])
    yield f"{entry['kept_entries']:.1f}"
    yield f"{entry['kept_bytes'] / 1024:.1f}"
    yield f"{entry['compression']:.1f}×" if entry["compression"] else "-"
    for metric in TEXT_METRICS:
        yield _mean(entry, metric)
        found = entry["to_full_prompt"].get(metric.name)
        yield (
            interval(found["difference"], found["interval"], "+" + metric.format) if found else "-"
        )
    yield _mean(entry, PERPLEXITY)
    ratio = entry["to_full_prompt"]["perplexity"]
    yield interval(ratio["ratio"], ratio["interval"], PERPLEXITY.format) if ratio else "-"
    yield f"{1000 * entry['prepare_seconds']:.1f}"
    first = entry["first_token_seconds"]
    yield "-" if first is None else f"{1000 * first:.1f}"


def _mean(entry: Mapping[str, Any], metric: Metric) -> str:
    mean = entry[metric.name]
    return "-" if mean is None else interval(mean, entry["intervals"][metric.name], metric.format)


def plot(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot scores and perplexity by kept entries (raises MissingExtraError, SaveError)."""
    panels = [*TEXT_METRICS, PERPLEXITY]
    figure = new_figure(6 * len(panels), 4.5, extra="compare")
    from matplotlib import colormaps

    colors = colormaps["tab20"]
    shown = [entry for entry in entries if not entry["missing"]]
    names = list(dict.fromkeys(entry["method"] for entry in shown))
    for axes, metric in zip(figure.subplots(1, len(panels)), panels, strict=True):
        key = metric.name
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
        axes.set_ylabel(metric.label)
        if metric is PERPLEXITY:
            axes.set_yscale("log")
        else:  # all of the scale, or as much of it as is needed
            top = max(e["intervals"][key][1] for e in shown) or 100.0
            axes.set_ylim(-0.03 * top, 1.03 * top)
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    save_figure(figure, path, dpi=130)
