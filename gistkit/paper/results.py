"""The paper's three tables: ROUGE-L, the judge's win rates, efficiency.

    FOLDER/model_outputs/MODEL-CONDITION-K/outputs-STEP-validation_SPLIT.csv[.gz]   ROUGE-L
    FOLDER/rouge.csv                                         its published values, if there
    FOLDER/chatgpt/*.json[.gz]                               win rates
    FOLDER/benchmarking/*.csv                                efficiency

Other runs' folders have the same layout, so their rows come out in the same format.
"""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gistkit.benchmark.files import read_table
from gistkit.benchmark.report import aggregate
from gistkit.errors import DataError, OptionError
from gistkit.evaluation.judge.results import read_results
from gistkit.evaluation.outputs import read_outputs
from gistkit.files import write_text
from gistkit.metrics import clean, score
from gistkit.report import error_bars, new_figure, or_dash, save_figure, table
from gistkit.stats import share_interval

SCHEMA_VERSION = 1
CASE = re.compile(r"(?P<model>.+)-(?P<condition>gist|pos_control|neg_control)-(?P<k>\d+)")
FILE = re.compile(r"outputs-(?P<steps>\d+)-validation_(?P<split>\w+)\.csv(\.gz|\.xz)?")
SPLIT = re.compile(r"validation_([a-z]+)")
KEYS = ("model", "condition", "num_gist_tokens", "steps", "split")
Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows by column name.

    `digits` are those of floats in Markdown, 2 by default; CSV and JSON hold all of them.
    """

    name: str
    title: str
    rows: Sequence[Mapping[str, Cell]]
    digits: Mapping[str, int]

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def markdown(self) -> str:
        """Title and table; "-" where there is no value."""
        rows = ([self._text(name, row.get(name)) for name in self.columns] for row in self.rows)
        return f"## {self.title}\n\n{table(self.columns, rows)}\n"

    def csv(self) -> str:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def _text(self, name: str, value: Cell) -> str:
        if value is None or isinstance(value, float):
            return or_dash(value, f".{self.digits.get(name, 2)}f")
        return str(value)


def build_tables(
    folders: Sequence[Path], names: Sequence[str] = (), *, seed: int = 0
) -> list[Table]:
    """The tables of these names, or all three, over all folders.

    Raises OptionError for an unknown name, DataError for damaged files or a folder without results.
    """
    build = {
        "rouge": lambda: rouge_table(folders, seed=seed),
        "judge": lambda: judge_table(folders),
        "efficiency": lambda: efficiency_table(folders, seed=seed),
    }
    for name in names:
        if name not in build:
            raise OptionError(f"no `table` {name!r}; choose of {', '.join(build)}")
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; name the released results by `reference`")
    tables = [build[name]() for name in names or build]
    if not any(each.rows for each in tables):
        raise DataError(
            f"{folders[0]}: holds no results; expected model_outputs/, chatgpt/ or benchmarking/"
        )
    return tables


def to_json(tables: Sequence[Table], *, seed: int) -> dict[str, Any]:
    head = {"schema_version": SCHEMA_VERSION, "seed": seed}
    return head | {each.name: list(each.rows) for each in tables}


def write_tables(tables: Sequence[Table], folder: Path, *, seed: int) -> None:
    """Write results.md, results.json, a CSV for each table, and rouge.png."""
    write_text(folder / "results.md", "\n".join(each.markdown() for each in tables))
    content = to_json(tables, seed=seed)
    write_text(folder / "results.json", json.dumps(content, ensure_ascii=False) + "\n")
    for each in tables:
        write_text(folder / f"{each.name}.csv", each.csv())
        if each.name == "rouge":
            plot(each, folder / "rouge.png")


def rouge_table(folders: Sequence[Path], *, seed: int = 0) -> Table:
    """ROUGE of every file of outputs; `published` and the difference where `rouge.csv` has it.

    Rows of `rouge.csv` without their outputs keep the published value alone.
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
    """Verdicts of every judge file: counts, win rate, exact interval of the wins among decided."""
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
    """Reductions against no cache of every benchmark file, in percent of the means."""
    rows: list[dict[str, Cell]] = []
    for folder in folders:
        tables = [read_table(path) for path in sorted((folder / "benchmarking").glob("*.csv"))]
        for file in aggregate(tables, seed=seed)["files"] if tables else []:
            for mode, found in file["modes"].items():
                for cost, paired in found["costs"].items():
                    interval = paired["reduction_interval"] or (None, None)
                    rows.append(
                        {
                            "source": folder.name,
                            "file": file["file"],
                            "kept": mode,
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


def plot(rouge: Table, path: Path) -> None:
    """ROUGE-L with its intervals as PNG: a panel for each split, a bar for each model.

    Published values without their answers are left out.
    """
    rows: list[Mapping[str, Any]] = [row for row in rouge.rows if row.get("RL") is not None]
    splits = list(dict.fromkeys(str(row["split"]) for row in rows))
    figure = new_figure(4 * max(1, len(splits)), 5)
    for number, split in enumerate(splits, 1):
        shown = [row for row in rows if row["split"] == split]
        names = [f"{row['model']}-{row['condition']}-{row['num_gist_tokens']}" for row in shown]
        values = [float(row["RL"]) for row in shown]
        ends = [(float(row["low"]), float(row["high"])) for row in shown]
        axes = figure.add_subplot(1, len(splits), number)
        axes.barh(range(len(shown)), values, xerr=error_bars(values, ends))
        axes.set_yticks(range(len(shown)), names, fontsize=6)
        axes.invert_yaxis()
        axes.set_title(split)
        axes.set_xlabel("ROUGE-L [%]")
    save_figure(figure, path, dpi=150)


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
                tuple(row[name] for name in KEYS): float(row["value"])
                for row in csv.DictReader(file)
            }
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(
            f"{path}: no table of ROUGE-L ({type(error).__name__}: {error}); "
            f"expected the columns {','.join((*KEYS, 'value'))}"
        ) from error
