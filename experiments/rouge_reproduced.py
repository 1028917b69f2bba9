"""ROUGE of the published outputs, beside the published numbers and the rouge_score library alone.

    python -m experiments.rouge_reproduced $GISTKIT_SHARED/data/reference_results

Quality, not speed. The folder holds `rouge.csv` and `model_outputs/` as the paper's authors
released them. The published numbers are the middle of an unseeded bootstrap, these are plain means.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rouge_score.rouge_scorer import RougeScorer

from experiments.report import RESULTS, write
from gistkit.evaluation.outputs import Output, matched, read_outputs
from gistkit.metrics import ROUGE_KINDS, Scores, clean, difference, score
from gistkit.report import interval, record, table

SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.rouge_reproduced")
    parser.add_argument("folder", type=Path, help="the released results")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows, paired = measure(options.folder)
    result = {
        **record("rouge_reproduced", packages=("gistkit", "rouge-score", "nltk", "numpy")),
        "command": "python -m experiments.rouge_reproduced $GISTKIT_SHARED/data/reference_results",
        "seed": SEED,
        "rows": rows,
        "paired": paired,
    }
    text = to_markdown(result)
    write(result, text, options.output)
    print(text)


def measure(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row for each of `rouge.csv`; and every difference to pos_control."""
    with (folder / "rouge.csv").open(newline="") as file:
        published = list(csv.DictReader(file))
    rows: list[dict[str, Any]] = []
    scored: dict[tuple[str, str, str, str], tuple[list[Output], Scores]] = {}
    for row in published:
        name = "{model}-{condition}-{num_gist_tokens}".format(**row)
        path = (
            folder
            / "model_outputs"
            / name
            / "outputs-{steps}-validation_{split}.csv.gz".format(**row)
        )
        case = (row["model"], row["split"], row["condition"], row["num_gist_tokens"])
        found = dict(zip(("model", "split", "condition", "k"), case, strict=True))
        found["published_rougeL"] = float(row["value"])
        if path.is_file():
            outputs = read_outputs(path)
            scores = score(*_texts(outputs), sentences=clean)
            scored[case] = outputs, scores
            found |= {
                **scores.report(seed=SEED),
                "difference": scores.means()["rougeL"] - found["published_rougeL"],
                "library": by_library(outputs),
            }
        rows.append(found)
    paired = []
    for (model, split, condition, k), (outputs, scores) in scored.items():
        control = model, split, "pos_control", "1"
        if condition != "pos_control" and control in scored:
            names = f"{model}-{condition}-{k}", f"{model}-pos_control-1"
            controls = matched(outputs, scored[control][0], names=names)
            against = score(*_texts(controls), sentences=clean)
            paired.append(
                {"a": names[0], "b": names[1], "split": split}
                | difference(scores, against, seed=SEED)
            )
    return rows, paired


def by_library(outputs: Sequence[Output]) -> dict[str, float]:
    """Mean scores by rouge_score alone, of the texts as they lie."""
    scorer = RougeScorer(list(ROUGE_KINDS), use_stemmer=True)
    scores = [scorer.score(row.y_true, row.y_pred) for row in outputs]
    return {kind: 100 * fmean(score[kind].fmeasure for score in scores) for kind in ROUGE_KINDS}


def _texts(outputs: Sequence[Output]) -> tuple[list[str], list[str]]:
    return [row.y_pred for row in outputs], [row.y_true for row in outputs]


def to_markdown(result: Mapping[str, Any]) -> str:
    """The tables."""
    given = [row for row in result["rows"] if "rougeL" in row]
    missing = [row for row in result["rows"] if "rougeL" not in row]
    largest = max(given, key=lambda row: abs(row["difference"]))
    apart = max(abs(row["library"][kind] - row[kind]) for row in given for kind in ROUGE_KINDS)
    close = sum(abs(row["difference"]) <= 0.05 for row in given)
    lines = [
        "# ROUGE of the published outputs",
        "",
        f"`{result['command']}`, {result['date']}. Of {len(result['rows'])} rows of the published "
        f"table {len(given)} have their outputs here"
        + (f"; not {', '.join(dict.fromkeys(map(_name, missing)))}." if missing else "."),
        "",
        f"- largest difference to the published ROUGE-L: {largest['difference']:+.3f} "
        f"({_name(largest)}, {largest['split']}); at most 0.05 apart: {close} of {len(given)}",
        f"- largest difference to the rouge_score library called directly, of all four kinds: "
        f"{apart:.2g}",
        "",
        "The published numbers are the middle of an unseeded bootstrap, these are plain means.",
        "",
        table(
            (
                "model", "split", "rows", "R1", "R2", "RL", "RLsum", "exact match", "words",
                "published RL", "difference",
            ),
            map(_cells, given),
        ),
        "",
        "Differences to pos_control on the same rows, with 95 % intervals by the paired bootstrap:",
        "",
        table(
            ("model", "split", "ROUGE-L", "exact match"),
            (
                (
                    pair["a"],
                    pair["split"],
                    *(
                        interval(pair[name]["difference"], pair[name]["interval"], "+.2f")
                        for name in ("rougeL", "exact_match")
                    ),
                )
                for pair in result["paired"]
            ),
        ),
    ]  # fmt: skip
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    return "\n".join([*lines, "", f"Seed {result['seed']}; {versions}.", ""])


def _cells(row: Mapping[str, Any]) -> list[object]:
    low, high = row["intervals"]["rougeL"]
    return [
        _name(row), row["split"], row["rows"], f"{row['rouge1']:.2f}", f"{row['rouge2']:.2f}",
        f"{row['rougeL']:.2f} [{low:.1f}, {high:.1f}]", f"{row['rougeLsum']:.2f}",
        f"{row['exact_match']:.1f}", f"{row['words']:.1f}", f"{row['published_rougeL']:.2f}",
        f"{row['difference']:+.3f}",
    ]  # fmt: skip


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['model']}-{row['condition']}-{row['k']}"


if __name__ == "__main__":
    main()
