"""From outcomes to a leaderboard: means with intervals, differences from the full prompt, a table.

Exact match has Wilson's interval, ROUGE-L and perplexity a bootstrap's; a difference is of the same
rows, by the paired bootstrap, so a method tried on few rows is compared on those. Perplexity is of
rows that fit the model with their full prompt too: the others are longer and harder, and a method
that keeps little would be scored on more of them.
"""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from math import exp
from statistics import fmean, median
from typing import Any

from gistkit.compare.run import Outcome
from gistkit.compare.timing import Times
from gistkit.metrics import (
    clean,
    exact_match_interval,
    exact_matches,
    rouge_scores,
)
from gistkit.prompts import Example
from gistkit.stats import mean_interval, paired_difference, rate_interval

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
    """Where nothing was taken in turn, the median while answering; or nothing."""
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
    """That of these rows, and its ratio to the full prompt's: value, low, high; empty of none."""
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
    lines = ["| " + " | ".join(HEAD) + " |", "|---|" + "---:|" * (len(HEAD) - 1)]
    lines += ["| " + " | ".join(_cells(one)) + " |" for one in entries if not one["missing"]]
    scored, rows = entries[0]["perplexity_rows"], entries[0]["rows"]
    if scored < rows:
        told = f"Perplexity: of the {scored} of {rows} rows that fit with their full prompt."
        lines += ["", told]
    missing: dict[tuple[str, str], list[str]] = {}
    for one in entries:
        if one["missing"]:
            missing.setdefault((one["method"], one["missing"]), []).append(str(one["budget"]))
    for (method, why), budgets in missing.items():
        lines += ["", f"{method}, budget {', '.join(budgets)}: not run: {why.rstrip('.')}."]
    return "\n".join(lines) + "\n"


def _cells(entry: Mapping[str, Any]) -> list[str]:
    difference, ratio = (entry["to_full_prompt"][name] for name in ("exact_match", "perplexity"))
    first = entry["first_token_seconds"]
    return [
        entry["method"],
        _or_dash(entry["budget"], "d"),
        str(entry["rows"]),
        f"{entry['kept_entries']:.1f}",
        f"{entry['kept_bytes'] / 1024:.1f}",
        _or_dash(entry["compression"], ".1f") + ("×" if entry["compression"] else ""),
        _with_interval(entry, "exact_match"),
        _interval(difference["difference"], difference["interval"], "+.1f"),
        _with_interval(entry, "rougeL"),
        _with_interval(entry, "perplexity", ".3g"),
        "-" if ratio is None else _interval(ratio["ratio"], ratio["interval"], ".3g"),
        f"{1000 * entry['prepare_seconds']:.1f}",
        "-" if first is None else f"{1000 * first:.1f}",
    ]


def _with_interval(entry: Mapping[str, Any], name: str, form: str = ".1f") -> str:
    if entry[name] is None:
        return "-"
    return _interval(entry[name], entry["intervals"][name], form)


def _interval(value: float, ends: Sequence[float], form: str) -> str:
    low, high = ends
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
