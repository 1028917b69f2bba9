"""Exact match on held-out instructions: every condition and k, by family, over seeds.

    python -m experiments.exact_match exp/tiny/tiny-0 exp/tiny/tiny-1 exp/tiny/tiny-2

Quality, not speed: what a gist of k tokens keeps of an instruction that was not trained on,
beside the full prompt (pos_control), no instruction (neg_control) and the best guess from the input
alone.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from experiments.report import RESULTS, write
from gistkit.data import tasks
from gistkit.evaluation.answers import AnswerOptions, answer
from gistkit.metrics import exact_match, exact_match_interval
from gistkit.model import GistModel
from gistkit.report import record, table

SEED = 99  # of the held-out examples; training never draws with it


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.exact_match", description=__doc__)
    parser.add_argument("models", nargs="+", help="folders of gist models, one for each seed")
    parser.add_argument("--families", default="reply,notice,rewrite")
    parser.add_argument("--split", default="validation_unseen", choices=tasks.SPLITS)
    parser.add_argument("--rows", type=int, default=200, help="for each family and difficulty")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    families = options.families.split(",")
    rows = [
        {"model": folder, **row}
        for folder in options.models
        for row in measure(GistModel.from_pretrained(folder), families, options.split, options.rows)
    ]
    result = {
        **record("exact_match"),
        "config": {**vars(options), "output": str(options.output), "seed": SEED},
        "guess": {name: 100 * tasks.guess_accuracy(name) for name in families},
        "rows": rows,
    }
    text = to_markdown(result)
    write(result, text, options.output)
    print(text)


def measure(
    model: GistModel, families: Sequence[str], split: str, rows: int
) -> list[dict[str, Any]]:
    """Exact match in percent, with its Wilson interval, of each condition, k and kind of task."""
    default = model.config.default_k
    ks = sorted(model.config.num_gist_tokens)
    cases = [("pos_control", default), *[("gist", k) for k in ks], ("neg_control", default)]
    found = []
    for family in families:
        for difficulty in tasks.DIFFICULTIES:
            examples = tasks.generate(family, split, n=rows, seed=SEED, difficulty=difficulty)
            references = [example.output for example in examples]
            for condition, k in cases:
                options = AnswerOptions(
                    condition, num_gist_tokens=k, batch_size=100, max_new_tokens=48
                )
                predictions = answer(model, examples, options)
                low, high = exact_match_interval(predictions, references)
                found.append(
                    {
                        "family": family,
                        "difficulty": difficulty,
                        "condition": condition,
                        "k": k if condition == "gist" else None,
                        "exact_match": exact_match(predictions, references),
                        "low": low,
                        "high": high,
                        "rows": rows,
                    }
                )
            print(f"{family}/{difficulty} done", file=sys.stderr, flush=True)
    return found


def to_markdown(result: Mapping[str, Any]) -> str:
    """The tables: overall by seed, then by family and difficulty, mean over seeds."""
    rows: list[dict[str, Any]] = result["rows"]
    models = list(dict.fromkeys(row["model"] for row in rows))
    cases = list(dict.fromkeys((row["condition"], row["k"]) for row in rows))
    split, number = result["config"]["split"], result["config"]["rows"]
    by_seed = []
    for condition, k in cases:
        means = [_mean(rows, (condition, k), model=model) for model in models]
        spread = f" ± {stdev(means):.1f}" if len(means) > 1 else ""
        cells = (f"{mean:.1f}" for mean in means)
        by_seed.append((condition, k or "", *cells, f"{fmean(means):.1f}{spread}"))
    guess = fmean(result["guess"].values())
    by_seed.append(("best guess without the instruction", "", *[""] * len(models), f"{guess:.1f}"))
    by_family = [
        (
            family,
            difficulty,
            *(f"{_mean(rows, case, family=family, difficulty=difficulty):.1f}" for case in cases),
        )
        for family, difficulty in dict.fromkeys((r["family"], r["difficulty"]) for r in rows)
    ]
    lines = [
        "# Exact match on held-out instructions",
        "",
        f"`{split}`, {number} examples for each family and difficulty, greedy, percent. "
        f"One column a seed. `python -m experiments.exact_match {' '.join(models)}`",
        "",
        table(("condition", "k", *(Path(m).name for m in models), "mean ± sd"), by_seed),
        "",
        "By family and difficulty, mean over seeds:",
        "",
        table(("family", "difficulty", *(f"{c} {k or ''}".strip() for c, k in cases)), by_family),
    ]
    return "\n".join(lines) + "\n"


def _mean(rows: Sequence[Mapping[str, Any]], case: tuple[str, int | None], **where: Any) -> float:
    return fmean(
        row["exact_match"]
        for row in rows
        if (row["condition"], row["k"]) == case and all(row[k] == v for k, v in where.items())
    )


if __name__ == "__main__":
    main()
