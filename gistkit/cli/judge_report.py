"""`gistkit judge report`: what files of verdicts say, and how far judges agree."""

import re
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from json import dumps
from pathlib import Path
from typing import Any

from gistkit.cli.run import emit
from gistkit.evaluation.judge.journal import SCHEMA_VERSION
from gistkit.evaluation.judge.results import Verdicts, read_results
from gistkit.stats import LEVEL, kappa, share_interval, sign_test

WIDTH = 180  # of tables that go to a file

_SPLIT = re.compile(r"validation_([a-z]+)")
_TURNED = {"a": "b", "b": "a", "tie": "tie"}


def report_files(paths: Sequence[Path], *, as_json: bool) -> None:
    """Print what files of verdicts say (raises DataError where one is none)."""
    found = [read_results(path) for path in paths]
    reports = [summary(str(path), one) for path, one in zip(paths, found, strict=True)]
    pairs = agreements([str(path) for path in paths], found)
    if as_json:
        head = {"schema_version": SCHEMA_VERSION, "level": LEVEL, "intervals": "Clopper-Pearson"}
        emit(dumps({**head, "files": reports, "agreement": pairs}, ensure_ascii=False))
        return
    print_tallies(reports)
    print_agreement(pairs)


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
        "mended_by_hand": tally.mended,
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


def agreements(files: Sequence[str], found: Sequence[Verdicts]) -> list[dict[str, Any]]:
    """How far every two files that judge the same pairs agree."""
    pairs = []
    for (file, one), (other, two) in combinations(zip(files, found, strict=True), 2):
        choices = _in_terms_of(one, two)
        shared = [what for what in one.choices if what in choices]
        if not shared:
            continue
        ours, theirs = [one.choices[what] for what in shared], [choices[what] for what in shared]
        value = kappa(ours, theirs)
        agreed = sum(a == b for a, b in zip(ours, theirs, strict=True))
        pairs.append(
            {
                "files": [file, other],
                "rows": len(shared),
                "agreed": {"count": agreed, **_share(agreed, len(shared))},
                "kappa": None if value is None else value[0],
                "kappa_interval": None if value is None else list(value[1]),
            }
        )
    return pairs


def _in_terms_of(one: Verdicts, two: Verdicts) -> Mapping[tuple[str, str, str, int], str]:
    """The choices of `two`, its A and B turned where they are the other way round in `one`."""
    if one.tally.names != two.tally.names[::-1]:
        return two.choices
    return {(x, b, a, time): _TURNED[c] for (x, a, b, time), c in two.choices.items()}


def print_tallies(reports: Sequence[Mapping[str, Any]]) -> None:
    """Wins, ties and losses, a line a file; then what must be said of some."""
    from rich.text import Text

    names = ("wins", "ties", "losses")
    table, console = _table()
    wide = console.width >= 150
    for name in ("A", "B", "split", "n", "A wins [%]", "ties [%]", "B wins [%]", "win rate"):
        table.add_column(name, overflow="fold", no_wrap=wide and name not in "AB")
    for name in ("A of decided", "p", "1st : 2nd", "stored"):
        table.add_column(name, no_wrap=wide)
    for one in reports:
        split = _SPLIT.search(one["file"])
        place = one["position"]
        low, high = one["decided"]["interval"]
        share = one["decided"]["percent"]
        table.add_row(
            Text(one["a"]),
            Text(one["b"]),
            split[1] if split else "",
            str(one["rows"]),
            *(_count(one[name]) for name in names),
            f"{one['win_rate']:.2f}",
            "-" if share is None else f"{share:.1f} [{low:.1f}, {high:.1f}]",
            f"{one['sign_test']:.2g}",
            f"{place['first']} : {place['second']}",
            _stored(one),
        )
    console.print(table)
    for one in reports:
        for line in _remarks(one):
            console.print(Text(f"{Path(one['file']).name}: {line}"), soft_wrap=True)


def _count(part: Mapping[str, Any]) -> str:
    low, high = part["interval"]
    return f"{part['count']} [{low:.1f}, {high:.1f}]"


def _stored(one: Mapping[str, Any]) -> str:
    if one["stored"] is None:
        return "-"
    return f"{one['stored'][0]:g}" + (f" ≠ {one['points'][0]:g}" if one["stored_differs"] else "")


def _remarks(one: Mapping[str, Any]) -> list[str]:
    lines = []
    if one["stored_differs"]:
        mended = f"; {one['mended_by_hand']} verdicts were read by hand"
        lines.append(
            f"stored scores {one['stored'][0]:g} : {one['stored'][1]:g}, its verdicts give "
            f"{one['points'][0]:g} : {one['points'][1]:g}"
            + (mended if one["mended_by_hand"] else "")
        )
    if one["failures"]:
        a, b = one["points_as_published"]
        lines.append(
            f"{one['failures']} rows without a verdict; counted as ties, as published: "
            f"{a:g} : {b:g} instead of {one['points'][0]:g} : {one['points'][1]:g}"
        )
    place = one["position"]
    if place["both_orders"]:
        lines.append(
            f"both orders: {place['consistent']} of {place['both_orders']} rows have the same "
            f"verdict; the answer shown first won {place['percent'] or 0:.1f} % of decided verdicts"
        )
    if one["usage"]:
        usage, cost = one["usage"], one["estimated_cost"]
        lines.append(
            f"{usage['requests']} requests, {usage['prompt_tokens']:,} + "
            f"{usage['completion_tokens']:,} tokens, "
            + ("price unknown" if cost is None else f"${cost:.4f}")
        )
    return lines


def print_agreement(pairs: Sequence[Mapping[str, Any]]) -> None:
    """Agreement between judges, a line every two files; nothing where none share pairs."""
    if not pairs:
        return
    from rich.text import Text

    table, console = _table("agreement between judges")
    for name in ("files", "n", "agreed % [95 %]", "kappa [95 %]"):
        table.add_column(name)
    for one in pairs:
        low, high = one["agreed"]["interval"]
        interval = one["kappa_interval"]
        table.add_row(
            Text("\n".join(one["files"])),
            str(one["rows"]),
            f"{one['agreed']['percent']:.1f} [{low:.1f}, {high:.1f}]",
            "-"
            if interval is None
            else f"{one['kappa']:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]",
        )
    console.print(table)


def _table(title: str | None = None) -> Any:
    from rich.console import Console
    from rich.table import Table

    width = None if sys.stdout.isatty() else WIDTH
    console = Console(file=sys.stdout, highlight=False, markup=False, width=width)
    return Table(title=title, title_justify="left"), console
