"""Files of verdicts, in the published format: read them, count them, report on them.

    {"names": {"a": "gist", "b": "full"}, "scores": {"full": 1.5, "gist": 0.5},
     "results": [{"reason": "...", "choice": "b", "swapped": true, "x": "Instruction: ...",
                  "gist": "an answer", "full": "the other"}, ...],
     "estimated_cost": 0.01}

gistkit adds the `row` of each result, `failures`, `usage`, `judge` (settings) and `complete`.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from gistkit.data.examples import opened
from gistkit.errors import DataError
from gistkit.stats import LEVEL, kappa, share_interval, sign_test

SCHEMA_VERSION = 1
USAGE = ("requests", "prompt_tokens", "completion_tokens")

_COUNTED = {"a": "wins", "b": "losses", "tie": "ties"}
_SWAPPED = {"a": "b", "b": "a", "tie": "tie"}
_UNREAD = "could not parse json"  # the published script's mark of an answer it took for a tie
_READ_BY_HAND = "(fixed json parse)"  # its authors' mark of one that they read by hand


@dataclass(frozen=True, slots=True)
class Tally:
    """A file's verdicts, counted.

    A row judged in both orders is won if both verdicts agree, and otherwise a tie.

    Attributes:
        wins, ties, losses: rows, as the first of the names sees them.
        failures: rows without a verdict. They are not counted here; `as_published`, they are ties.
        read_by_hand: verdicts that published files mark as such.
        first, second: verdicts for the answer shown first, and for the one shown second.
        consistent, both: rows whose two verdicts agree, of those that have two.
        stored: the points that the file itself gives to both; None where it gives none.
    """

    names: tuple[str, str]
    wins: int = 0
    ties: int = 0
    losses: int = 0
    failures: int = 0
    read_by_hand: int = 0
    first: int = 0
    second: int = 0
    consistent: int = 0
    both: int = 0
    stored: tuple[float, float] | None = None

    @property
    def rows(self) -> int:
        """Rows with a verdict."""
        return self.wins + self.ties + self.losses

    @property
    def points(self) -> tuple[float, float]:
        """One for a win, half for a tie."""
        return self.wins + self.ties / 2, self.losses + self.ties / 2

    @property
    def win_rate(self) -> float:
        """Points a row, 0 to 1; one half of nothing."""
        return self.points[0] / self.rows if self.rows else 0.5

    @property
    def as_published(self) -> tuple[float, float]:
        """The points where every row without a verdict counts as a tie."""
        return self.points[0] + self.failures / 2, self.points[1] + self.failures / 2

    @property
    def differs(self) -> bool:
        """Whether the stored points are not those of the verdicts."""
        return self.stored is not None and self.stored not in (self.points, self.as_published)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """A results file: `choices` by what was judged (prompt, both answers, which time)."""

    tally: Tally
    choices: Mapping[tuple[str, str, str, int], str]
    content: Mapping[str, Any]


def read_results(path: Path) -> Verdicts:
    """Read a `.json`, alone or with `.gz` or `.xz` (raises DataError)."""
    with opened(path) as file:
        data = file.read()
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no file of verdicts (malformed JSON: {error})") from error
    return verdicts(content, str(path))


def verdicts(content: Any, where: str) -> Verdicts:
    """Count the content of a results file; `where` names it in messages (raises DataError)."""
    try:
        # every text can be printed, no number is NaN
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
        names = (str(content["names"]["a"]), str(content["names"]["b"]))
        results = [_checked(result, names) for result in content["results"]]
        wanted = 2 if (content.get("judge") or {}).get("both_orders") else 1
        failed = {failure["row"] for failure in content.get("failures") or ()}
        scores = content.get("scores") or {}
        stored = (float(scores[names[0]]), float(scores[names[1]])) if scores else None
        _check_costs(content)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{where}: no file of verdicts ({type(error).__name__}: {error}); expected names, "
            "scores and results"
        ) from error
    rows: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for number, result in enumerate(results):
        rows[result.get("row", number)].append(result)
    counts: Counter[str] = Counter()
    choices: dict[tuple[str, str, str, int], str] = {}
    for row, found in rows.items():
        row_choices = [_choice_of(result) for result in found]
        for choice, result in zip(row_choices, found, strict=True):
            counts["read_by_hand"] += _READ_BY_HAND in result["reason"].lower()
            if choice in ("a", "b"):
                counts["first" if (choice == "b") == result["swapped"] else "second"] += 1
        agreed = len(set(row_choices)) == 1
        if len(found) > 1 and None not in row_choices:
            counts["both"] += 1
            counts["consistent"] += agreed
        if None in row_choices or len(found) < wanted:
            failed.add(row)
            continue
        choice = str(row_choices[0]) if agreed else "tie"
        counts[_COUNTED[choice]] += 1
        times = 0
        while (pair := (found[0]["x"], found[0][names[0]], found[0][names[1]], times)) in choices:
            times += 1
        choices[pair] = choice
    tally = Tally(names, failures=len(failed), stored=stored, **counts)
    return Verdicts(tally, choices, content)


def _checked(result: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any]:
    for field in ("reason", "choice", "x", *names):
        if not isinstance(result[field], str):
            raise TypeError(f"{field} is no text")
    if not isinstance(result["swapped"], bool):
        raise TypeError("swapped is neither true nor false")
    if not isinstance(result.get("row", 0), int):
        raise TypeError("row is no number")
    return result


def _check_costs(content: Mapping[str, Any]) -> None:
    usage, cost = content.get("usage"), content.get("estimated_cost")
    if usage is not None and not all(isinstance(usage[name], int) for name in USAGE):
        raise TypeError("usage is no count")
    if not isinstance(cost, int | float | None):
        raise TypeError("estimated_cost is no number")


def _choice_of(result: Mapping[str, Any]) -> str | None:
    """ "a", "b" or "tie", of the pair; None where the reply was no verdict."""
    choice = result["choice"].strip().lower()
    unread = result["reason"].lower().startswith(_UNREAD)
    return None if unread or choice not in _COUNTED else str(choice)


def report(paths: Sequence[Path]) -> dict[str, Any]:
    """Summaries of files, and the agreement of their judges, as JSON values (raises DataError)."""
    names = [str(path) for path in paths]
    found = [read_results(path) for path in paths]
    return {
        "schema_version": SCHEMA_VERSION,
        "level": LEVEL,
        "intervals": "Clopper-Pearson",
        "files": [summary(name, verdicts) for name, verdicts in zip(names, found, strict=True)],
        "agreement": _agreements(names, found),
    }


def summary(file: str, found: Verdicts) -> dict[str, Any]:
    """A file's verdicts as JSON values: counts, shares with exact intervals, position bias."""
    tally, content = found.tally, found.content
    decided = tally.wins + tally.losses
    settings = content.get("judge") or {}
    return {
        "file": file,
        "a": tally.names[0],
        "b": tally.names[1],
        "judge": settings.get("model"),
        "rows": tally.rows,
        "wins": {"count": tally.wins, **_share(tally.wins, tally.rows)},
        "ties": {"count": tally.ties, **_share(tally.ties, tally.rows)},
        "losses": {"count": tally.losses, **_share(tally.losses, tally.rows)},
        "decided": {"count": decided, **_share(tally.wins, decided)},
        "win_rate": 100 * tally.win_rate,
        "sign_test": sign_test(tally.wins, tally.losses),
        "points": list(tally.points),
        "stored": None if tally.stored is None else list(tally.stored),
        "stored_differs": tally.differs,
        "failures": tally.failures,
        "points_as_published": list(tally.as_published),
        "read_by_hand": tally.read_by_hand,
        "position": {
            "first": tally.first,
            "second": tally.second,
            **_share(tally.first, tally.first + tally.second),
            "sign_test": sign_test(tally.first, tally.second),
            "both_orders": tally.both,
            "consistent": tally.consistent,
        },
        "usage": content.get("usage"),
        "estimated_cost": content.get("estimated_cost"),
    }


def _share(count: int, total: int) -> dict[str, Any]:
    """A share in percent with its interval; null of nothing."""
    low, high = share_interval(count, total)
    share = 100 * count / total if total else None
    return {"percent": share, "interval": [100 * low, 100 * high]}


def _agreements(names: Sequence[str], found: Sequence[Verdicts]) -> list[dict[str, Any]]:
    """How far every two files that judge the same pairs agree."""
    agreements = []
    for (a, first), (b, second) in combinations(zip(names, found, strict=True), 2):
        aligned = _aligned(second, first.tally.names)
        shared = [pair for pair in first.choices if pair in aligned]
        if not shared:
            continue
        choices, others = ([found[pair] for pair in shared] for found in (first.choices, aligned))
        value = kappa(choices, others)
        agreed = sum(choice == other for choice, other in zip(choices, others, strict=True))
        agreements.append(
            {
                "files": [a, b],
                "rows": len(shared),
                "agreed": {"count": agreed, **_share(agreed, len(shared))},
                "kappa": None if value is None else value[0],
                "kappa_interval": None if value is None else list(value[1]),
            }
        )
    return agreements


def _aligned(verdicts: Verdicts, names: tuple[str, str]) -> Mapping[tuple[str, str, str, int], str]:
    """The choices, with A and B swapped where the file has the names in the other order."""
    if verdicts.tally.names != names[::-1]:
        return verdicts.choices
    return {(x, b, a, time): _SWAPPED[c] for (x, a, b, time), c in verdicts.choices.items()}
