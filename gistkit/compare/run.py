"""A comparison: answer by every method and budget, and write the leaderboard after each.

The report is its own journal: a run with the same options takes the outcomes of compare.json, and
runs only the methods that are missing or could not be run.
"""

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gistkit.compare.leaderboard import leaderboard, markdown, plot
from gistkit.compare.measure import Outcome, Times, answer_all, take_times
from gistkit.compare.methods import Options, Sources, build
from gistkit.errors import SaveError
from gistkit.files import write_text
from gistkit.metrics import rouge
from gistkit.model import GistModel
from gistkit.prompts import Example
from gistkit.report import machine, record

NAME = "compare"
PACKAGES = ("gistkit", "torch", "transformers", "rouge-score", "numpy", "scikit-learn")
TIMED = 20  # rows on which times are taken


def compare(
    model: GistModel,
    examples: Sequence[Example],
    out: Path,
    options: Options,
    *,
    pool: Sequence[Example] = (),
    about: Mapping[str, Any],
    force: bool = False,
    progress: Callable[[str, int], Callable[[int], object]] = lambda name, rows: lambda done: None,
) -> dict[str, Any]:
    """Answer by every method, and write compare.json (also returned), compare.md, compare.png.

    Args:
        pool: other examples, whose inputs are probes; default: those that are answered.
        about: JSON values that describe model and data: `model` and `data` are in the heading, and
            all must be the same for a run to resume.
        force: replace a comparison with other options.
        progress: called with a method's name and number of steps before it begins; returns a
            function that is called with the number of steps done.

    Raises:
        OptionError: there is no such method, or the model is an encoder-decoder.
        MissingExtraError: rouge_score, scikit-learn or matplotlib is not installed.
        SaveError: `out` holds another comparison, or cannot be written.
    """
    rouge(["a"], ["a"])  # fail before answering if rouge_score is not installed
    sources = Sources(examples, pool or examples, options)
    budgets = options.budgets or (model.config.default_k,)
    runs = [
        (method, budget)
        for method in build(options.methods, sources)
        for budget in (budgets if method.budgeted else budgets[:1])
    ]
    settings = {**about, **asdict(options), "fingerprint": model.fingerprint}
    config: dict[str, Any] = json.loads(json.dumps(settings))
    path = out / f"{NAME}.json"
    known = {
        (outcome.method, outcome.budget): outcome
        for outcome in ([] if force else _read(path, config, len(examples)))
        if not outcome.missing  # what was missing may be installed by now
    }
    outcomes: list[Outcome] = []
    done: set[tuple[str, int | None]] = set()
    for method, budget in runs:
        key = method.name, budget if method.budgeted else None
        done.add(key)
        outcome = known.get(key)
        if outcome is None:
            outcome = answer_all(
                model,
                examples,
                method,
                budget,
                batch_size=options.batch_size,
                max_new_tokens=options.max_new_tokens,
                done=progress(f"{method.name}, {budget}", 2 * len(examples[: method.most_rows])),
            )
            later = [found for key, found in known.items() if key not in done]
            _write(_report(model, [*outcomes, outcome, *later], examples, config), out)
        outcomes.append(outcome)
    report = _report(model, outcomes, examples, config, take_times(model, examples[:TIMED], runs))
    _write(report, out)
    return report


def _read(path: Path, config: Mapping[str, Any], rows: int) -> list[Outcome]:
    """Outcomes of an earlier run (raises SaveError where it had other options)."""
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["config"] != config:
            raise ValueError("other options")
        outcomes = [Outcome(**outcome) for outcome in found["outcomes"]]
        for outcome in outcomes:
            if not outcome.missing and not outcome.is_whole(rows):
                raise ValueError(f"{outcome.method}: rows are missing")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SaveError(
            f"{path} is of another comparison, or damaged; choose another `out`, or pass "
            "`force=True`"
        ) from error
    return outcomes


def _report(
    model: GistModel,
    outcomes: Sequence[Outcome],
    examples: Sequence[Example],
    config: Mapping[str, Any],
    times: Sequence[Times | None] = (),
) -> dict[str, Any]:
    return {
        **record(NAME, packages=PACKAGES),
        "command": shlex.join(["gistkit", *sys.argv[1:]]),
        "hardware": machine(model.device),
        "seed": config["seed"],
        "config": config,
        "rows": len(examples),
        "leaderboard": leaderboard(outcomes, examples, times=times, seed=config["seed"]),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }


def _write(report: Mapping[str, Any], out: Path) -> None:
    config = report["config"]
    head = (
        f"# Ways to keep an instruction: {config['model']} on {config['data']}\n\n"
        f"{report['rows']} examples, greedy; 95 % intervals; {report['date'][:10]}. "
        f"How to read it: docs/compare.md.\n\n    {report['command']}\n\n"
    )
    write_text(out / f"{NAME}.json", json.dumps(report, ensure_ascii=False) + "\n")
    write_text(out / f"{NAME}.md", head + markdown(report["leaderboard"]))
    plot(report["leaderboard"], out / f"{NAME}.png")
