"""The three tables: ROUGE-L, the judge's win rates, efficiency.

    FOLDER/model_outputs/MODEL-CONDITION-K/outputs-STEP-validation_SPLIT.csv[.gz]   ROUGE-L
    FOLDER/rouge.csv                                         its published values, if there
    FOLDER/chatgpt/*.json[.gz]                               win rates
    FOLDER/benchmarking/*.csv                                efficiency

A folder of our own is laid out alike, so its rows come out in the same format.
"""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from gistkit.benchmark.aggregate import aggregate
from gistkit.benchmark.rows import read_table
from gistkit.errors import DataError
from gistkit.evaluation.judge.results import read_results
from gistkit.evaluation.outputs import read_outputs
from gistkit.evaluation.scores import score
from gistkit.metrics import clean
from gistkit.paper.results.tables import Cell, Table
from gistkit.stats import share_interval

CASE = re.compile(r"(?P<model>.+)-(?P<condition>gist|pos_control|neg_control)-(?P<k>\d+)")
FILE = re.compile(r"outputs-(?P<steps>\d+)-validation_(?P<split>\w+)\.csv(\.gz|\.xz)?")
SPLIT = re.compile(r"validation_([a-z]+)")
KEYS = ("model", "condition", "num_gist_tokens", "steps", "split")


def rouge_table(folders: Sequence[Path], *, seed: int = 0) -> Table:
    """ROUGE of every file of outputs; `published` and the difference where `rouge.csv` has it.

    Rows of `rouge.csv` without their outputs keep the published value alone.

    Raises:
        DataError: a file is damaged.
    """
    rows: list[dict[str, Cell]] = []
    for folder in folders:
        published = _published(folder / "rouge.csv")
        for path in sorted((folder / "model_outputs").glob("*/outputs-*"), key=_counted):
            case, file = CASE.fullmatch(path.parent.name), FILE.fullmatch(path.name)
            if case is None or file is None:
                continue
            given = (case["model"], case["condition"], case["k"], file["steps"], file["split"])
            outputs = read_outputs(path)
            scores = score(
                [o.y_pred for o in outputs], [o.y_true for o in outputs], sentences=clean
            )
            means = scores.means()
            low, high = scores.interval("rougeL", seed=seed)
            value = published.pop(given, None)
            rows.append(
                {
                    **_head(folder, given),
                    "rows": len(scores),
                    "R1": means["rouge1"],
                    "R2": means["rouge2"],
                    "RL": means["rougeL"],
                    "low": low,
                    "high": high,
                    "published RL": value,
                    "difference": None if value is None else means["rougeL"] - value,
                }
            )
        rows += [{**_head(folder, key), "published RL": v} for key, v in published.items()]
    return Table(
        "rouge", "ROUGE-L, in percent, with 95 % bootstrap intervals", rows, {"difference": 3}
    )


def judge_table(folders: Sequence[Path]) -> Table:
    """Verdicts of every judge file: counts, win rate, exact interval of the wins among decided.

    Raises:
        DataError: a file is damaged.
    """
    rows: list[dict[str, Cell]] = []
    for folder in folders:
        for path in sorted((folder / "chatgpt").glob("*.json*"), key=_counted):
            if path.name.endswith(".partial"):
                continue
            tally, split = read_results(path).tally, SPLIT.search(path.name)
            low, high = share_interval(tally.wins, tally.wins + tally.losses)
            rows.append(
                {
                    "source": folder.name,
                    "a": tally.names[0],
                    "b": tally.names[1],
                    "split": split[1] if split else None,
                    "rows": tally.rows,
                    "wins": tally.wins,
                    "ties": tally.ties,
                    "losses": tally.losses,
                    "win rate": 100 * tally.win_rate,
                    "low (decided)": 100 * low,
                    "high (decided)": 100 * high,
                    "stored": None if tally.stored is None else tally.stored[0],
                    "stored differs": "yes" if tally.differs else "no",
                    "first shown wins": tally.first,
                    "second shown wins": tally.second,
                }
            )
    return Table("judge", "Win rates by the judge, a tie is half a win", rows, {"stored": 1})


def efficiency_table(folders: Sequence[Path], *, seed: int = 0) -> Table:
    """Reductions against no cache of every benchmark file, in percent of the means.

    Raises:
        DataError: a file is damaged.
    """
    rows: list[dict[str, Cell]] = []
    for folder in folders:
        tables = [read_table(path) for path in sorted((folder / "benchmarking").glob("*.csv"))]
        for file in aggregate(tables, seed=seed)["files"] if tables else []:
            for way, found in file["ways"].items():
                for cost, paired in found["costs"].items():
                    interval = paired["reduction_interval"] or (None, None)
                    rows.append(
                        {
                            "source": folder.name,
                            "file": file["file"],
                            "kept": way,
                            "kept tokens": found["kept_tokens"],
                            "cost": cost,
                            "no cache": paired["base_mean"],
                            "cached": paired["mean"],
                            "reduction": paired["reduction"],
                            "low": interval[0],
                            "high": interval[1],
                        }
                    )
    digits = {"kept tokens": 1, "no cache": 1, "cached": 1}
    return Table("efficiency", "Cost of one forward pass, reduction in percent", rows, digits)


def _head(folder: Path, key: tuple[str, ...]) -> dict[str, Cell]:
    return {"source": folder.name, **dict(zip(KEYS, key, strict=True))}


def _counted(path: Path) -> list[tuple[int, str]]:
    """Sorts numbers in names as numbers: k = 2 before k = 10."""
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _published(path: Path) -> dict[tuple[str, ...], float]:
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {
                tuple(r[name] for name in KEYS): float(r["value"]) for r in csv.DictReader(file)
            }
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path}: no table of ROUGE-L ({type(error).__name__}: {error}); "
            f"expected the columns {','.join((*KEYS, 'value'))}"
        ) from error
