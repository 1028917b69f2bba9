"""A benchmark's result: JSON with every sample and everything needed to repeat it, then a table.

The table speaks in ratios: a bare time on a shared machine says nothing. Every comparison has the
column of the cached prompt, which is what a gist must beat.
"""

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

from gistkit import report
from gistkit.files import write_text
from gistkit.report import record, table
from gistkit.stats import Interval, median_ratio
from gistkit.timing import Timing

SCHEMA_VERSION = 1
CLOCKS = ("wall", "cpu")
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much longer `side` takes than `against`; promised is at most `most`, if anything."""

    side: str
    against: str
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison.

    Attributes:
        name: what was run.
        base: the side all others are divided by in the table.
        samples: timings of each side, paired by round.
        comparisons: pairs of sides to tell apart from the table.
        facts: for each side further numbers, such as kept bytes.
        checks: what was asserted to be equal beside the timing.
    """

    name: str
    base: str
    samples: Mapping[str, Sequence[Timing]]
    comparisons: Sequence[Comparison] = ()
    facts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    checks: Mapping[str, str] = field(default_factory=dict)

    def ratio(self, side: str, against: str, clock: str, seed: int) -> Interval:
        """Paired ratio of two sides by one clock, "wall" or "cpu"."""
        top, bottom = ([getattr(t, clock) for t in self.samples[s]] for s in (side, against))
        return median_ratio(top, bottom, seed=seed)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of the command line, without the sizes."""

    rounds: int
    seed: int = 0
    device: str = "cpu"
    threads: int = 1
    model: str | None = None


def to_json(
    theme: str, options: Options, sizes: Mapping[str, Any], cases: Sequence[Case], **context: Any
) -> dict[str, Any]:
    """The machine-readable result."""
    return {
        **record(theme, schema_version=SCHEMA_VERSION),
        "seed": options.seed,
        "config": asdict(options) | ({} if options.model else _plain(sizes)),
        "versions": versions(),
        "hardware": hardware(options.device),
        **context,
        "cases": [_case(case, options.seed) for case in cases],
    }


def _plain(sizes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in sizes.items()
    }


def _case(case: Case, seed: int) -> dict[str, Any]:
    others = [side for side in case.samples if side != case.base]
    return {
        "name": case.name,
        "base": case.base,
        "rounds": len(case.samples[case.base]),
        "ratios_to_base": {
            side: {clock: asdict(case.ratio(side, case.base, clock, seed)) for clock in CLOCKS}
            for side in others
        },
        "comparisons": [_comparison(case, one, seed) for one in case.comparisons],
        "facts": case.facts,
        "checks": case.checks,
        "samples_s": {
            side: {clock: [getattr(t, clock) for t in timings] for clock in CLOCKS}
            for side, timings in case.samples.items()
        },
    }


def _comparison(case: Case, one: Comparison, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = asdict(one)
    for clock in CLOCKS:
        ratio = case.ratio(one.side, one.against, clock, seed)
        verdict = {} if one.most is None else {"verdict": ratio.verdict(one.most)}
        found[clock] = asdict(ratio) | verdict
    return found


def to_markdown(result: Mapping[str, Any], about: str) -> str:
    """The result for people: ratios with their 95 % intervals, bars, facts."""
    hardware, versions = result["hardware"], result["versions"]
    lines = [f"# {result['theme']}", "", about.strip(), ""]
    for case in result["cases"]:
        ratios = case["ratios_to_base"]
        rows = [
            (f"{case['base']} ({clock})", *(_interval(found[clock]) for found in ratios.values()))
            for clock in CLOCKS
        ]
        lines += [f"## {case['name']}", "", table(("time / time of", *ratios), rows), ""]
        for comparison in case["comparisons"]:
            clocks = []
            for clock in CLOCKS:
                ratio, verdict = comparison[clock], comparison[clock].get("verdict", "")
                clocks.append(f"{clock} {_interval(ratio)} {verdict}".rstrip())
            bar = "" if comparison["most"] is None else f", at most {comparison['most']}"
            lines += [f"- {comparison['side']} / {comparison['against']}{bar}: {'; '.join(clocks)}"]
        for side, facts in case["facts"].items():
            numbers = ", ".join(f"{what} {_number(value)}" for what, value in facts.items())
            lines += [f"- {side}: {numbers}"]
        lines += [f"- checked: {what} ({how})" for what, how in case["checks"].items()]
        lines += [f"- {case['rounds']} rounds", ""]
    lines += [
        f"Median of paired ratios [95 % interval]. {hardware['processor']}, {hardware['device']}, "
        f"{result['config']['threads']} thread(s); load average {result['load_average']['before']}"
        f" before, {result['load_average']['after']} after; seed {result['seed']}; "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + f"; {result['date']}.",
        "",
    ]
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _interval(found: Mapping[str, float]) -> str:
    return str(Interval(found["median"], found["low"], found["high"]))


def write(result: Mapping[str, Any], text: str, folder: Path, *, hardware: str = "cpu") -> Path:
    """Write `<theme>_<hardware>_<date>.json` and `.md`; returns the path of the table."""
    name = f"{result['theme']}_{hardware}_{result['date'][:10]}"
    write_text(folder / f"{name}.json", json.dumps(result, indent=1, default=str) + "\n")
    return write_text(folder / f"{name}.md", text)


def versions() -> dict[str, str]:
    """What ran: Python, packages, and the commit where this is a checkout."""
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return report.versions() | {"commit": commit}


def hardware(device: str) -> dict[str, Any]:
    """The processor, how many cores, the device, and a `slug` of them for file names."""
    found = report.machine(device)
    used = found["processor"] if found["device"] == "CPU" else found["device"]
    words = re.sub(r"\(r\)|\(tm\)|processor|cpu|@", " ", used.lower())
    return found | {"slug": re.sub(r"[^a-z0-9.]+", "-", words).strip("-")}
