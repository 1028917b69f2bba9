"""What `gistkit compare` does: answer by every method, write the leaderboard, print it."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistkit.cli.run import emit, progress_bar, quiet_libraries
from gistkit.errors import OptionError, SaveError
from gistkit.prompts import Example

if TYPE_CHECKING:
    from gistkit.compare import Method, Outcome, Times
    from gistkit.model import GistModel

SCHEMA_VERSION = 1
NAME = "compare"
TASK_SEED = 0
POOL = 400  # generated examples behind those that are answered, whose inputs are probes
TIMED = 20  # rows of which times are taken, the methods in turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What the user asked for; None and empty stand for the defaults."""

    model: str
    precision: str
    device: str
    cache_dir: str
    data: str
    split: str | None
    families: str | None
    methods: tuple[str, ...]
    budgets: tuple[int, ...]
    limit: int
    trained_limit: int
    lingua: str
    max_new_tokens: int
    batch_size: int
    seed: int

    def load(self, *, verbose: bool) -> "GistModel":
        """The model (raises ModelError, OptionError)."""
        if not verbose:
            quiet_libraries()
        from gistkit.model import GistModel

        return GistModel.from_pretrained(
            self.model,
            dtype=self.precision,
            device=self.device,
            cache_dir=self.cache_dir,
        )

    def read(self, model: "GistModel") -> list[Example]:
        """All examples there are, in the order in which they are answered (raises DataError)."""
        from gistkit.data import tasks
        from gistkit.evaluation.data import PREFIX, TASKS, read_validation

        if self.data == TASKS:
            trained = model.config.training.get("families")
            known = trained if isinstance(trained, list) else [tasks.MIXED]
            split = PREFIX + (self.split or "unseen").removeprefix(PREFIX)
            family = self.families or "+".join(known)
            return tasks.generate(family, split, n=self.limit + POOL, seed=TASK_SEED)
        if self.families is not None:
            raise OptionError("--families belongs to the generated tasks; use --data tasks")
        named = self.split or ("unseen" if Path(self.data).is_dir() else None)
        (rows,) = read_validation(self.data, [named] if named else []).values()
        return rows


def compare_model(
    asked: Comparison, out: Path, *, as_json: bool, force: bool, verbose: bool
) -> None:
    """Answer by every method and budget, write after each, print.

    Raises:
        GistkitError: the model, the data or an option cannot be used, or `out` holds another
            comparison.
    """
    from gistkit.compare import METHODS, Sources, build, markdown, take_times
    from gistkit.metrics import rouge

    rouge(["a"], ["a"])  # complain before answering that rouge_score is not installed
    for name in asked.methods:
        if name not in METHODS:
            raise OptionError(f"--methods {name}: there is none; choose of {', '.join(METHODS)}")
    model = asked.load(verbose=verbose)
    rows = asked.read(model)
    examples, others = rows[: asked.limit], rows[asked.limit :]
    sources = Sources(
        examples,
        others or examples,  # a small file: probes are inputs of the others it holds
        seed=asked.seed,
        most_trained=asked.trained_limit,
        lingua=asked.lingua,
        cache_dir=asked.cache_dir,
    )
    budgets = asked.budgets or (model.config.default_k,)
    cases = [
        (method, budget)
        for method in build(asked.methods, sources)
        for budget in (budgets if method.budgeted else budgets[:1])
    ]
    config = json.loads(json.dumps(asdict(asked) | {"fingerprint": model.fingerprint}))
    outcomes = _outcomes(model, examples, cases, asked, config, out, force=force)
    report = _report(outcomes, examples, config, take_times(model, examples[:TIMED], cases))
    _write(report, out)
    emit(json.dumps(report, ensure_ascii=False) if as_json else markdown(report["leaderboard"]))


def _outcomes(
    model: "GistModel",
    examples: Sequence[Example],
    cases: "Sequence[tuple[Method, int]]",
    asked: Comparison,
    config: dict[str, Any],
    out: Path,
    *,
    force: bool,
) -> "list[Outcome]":
    """Those of an interrupted run of the same command, and the rest answered now."""
    from gistkit.compare import answer_all

    known = {
        (one.method, one.budget): one
        for one in _known(out / f"{NAME}.json", config, len(examples), force=force)
        if not one.missing  # what was missing may be there by now
    }
    outcomes: list[Outcome] = []
    with progress_bar() as progress:
        for method, budget in cases:
            if found := known.get((method.name, budget if method.budgeted else None)):
                outcomes.append(found)
                continue
            task = progress.add_task(
                f"{method.name}, {budget}", total=2 * len(examples[: method.most_rows])
            )
            outcomes.append(
                answer_all(
                    model,
                    examples,
                    method,
                    budget,
                    batch_size=asked.batch_size,
                    max_new_tokens=asked.max_new_tokens,
                    done=lambda rows, task=task: progress.advance(task, rows),  # type: ignore[misc]
                )
            )
            progress.remove_task(task)
            _write(_report(outcomes, examples, config), out)
    return outcomes


def _known(path: Path, config: dict[str, Any], rows: int, *, force: bool) -> "list[Outcome]":
    """Outcomes that are there already (raises SaveError where they are of something else)."""
    from gistkit.compare import Outcome

    if force or not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["config"] != config:
            raise ValueError("another command")
        outcomes = [Outcome(**one) for one in found["outcomes"]]
        for one in outcomes:
            if not one.missing and not one.fits(rows):
                raise ValueError(f"{one.method}: rows are missing")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SaveError(
            f"{path} is of another comparison, or damaged; choose another --out, or --force"
        ) from error
    return outcomes


def _report(
    outcomes: "Sequence[Outcome]",
    examples: Sequence[Example],
    config: dict[str, Any],
    times: "Sequence[Times | None]" = (),
) -> dict[str, Any]:
    from gistkit.compare import leaderboard

    packages = ("gistkit", "torch", "transformers", "rouge-score", "numpy", "scikit-learn")
    return {
        "schema_version": SCHEMA_VERSION,
        "theme": NAME,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["gistkit", *sys.argv[1:]]),
        "versions": {"python": platform.python_version()} | _installed(packages),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "seed": config["seed"],
        "config": config,
        "rows": len(examples),
        "leaderboard": leaderboard(outcomes, examples, times=times, seed=config["seed"]),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }


def _installed(packages: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # of an extra that this comparison did not need
            continue
    return found


def _write(report: dict[str, Any], out: Path) -> None:
    from gistkit.compare import markdown
    from gistkit.compare.picture import draw
    from gistkit.files import write_text

    config = report["config"]
    head = (
        f"# Ways to keep an instruction: {config['model']} on {config['data']}\n\n"
        f"{report['rows']} examples, greedy; 95 % intervals; {report['date'][:10]}. "
        f"How to read it: docs/compare.md.\n\n    {report['command']}\n\n"
    )
    write_text(out / f"{NAME}.json", json.dumps(report, ensure_ascii=False) + "\n")
    write_text(out / f"{NAME}.md", head + markdown(report["leaderboard"]))
    draw(report["leaderboard"], out / f"{NAME}.png")
