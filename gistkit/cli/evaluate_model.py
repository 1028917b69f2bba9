"""`gistkit evaluate MODEL --data PATH`: answer splits, score the answers, compare conditions.

read ── Cases.answer ──> outputs ── Cases.report ──> OUT/metrics-{step}.json, a table
"""

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistkit.cli.run import emit, progress_bar, quiet_libraries, say
from gistkit.cli.score import head, print_scores
from gistkit.errors import GistkitError, OptionError, SaveError
from gistkit.evaluation.scores import NAMES

if TYPE_CHECKING:
    from gistkit.evaluation.answers import AnswerOptions
    from gistkit.model import GistModel

SHOWN = (*NAMES, "gen_len", "loss", "perplexity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What the user asked for; None and empty stand for the defaults."""

    model: str
    precision: str
    device: str
    cache_dir: str
    data: str
    splits: tuple[str, ...]
    condition: str
    ks: tuple[int, ...]
    path: str
    max_samples: int | None
    max_new_tokens: int | None
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

    def cases(self, model: "GistModel") -> "dict[str, AnswerOptions]":
        """How to answer, by name: `gist-2`, `pos_control-1`, ... (raises OptionError)."""
        from gistkit.evaluation.answers import AnswerOptions

        trained = model.config.num_gist_tokens
        for k in self.ks:
            if trained and k not in trained:
                known = ", ".join(map(str, trained))
                raise OptionError(f"-k {k}: this model was trained for {known} gist tokens")
        every = self.condition == "all"
        ks = self.ks or (tuple(sorted(trained)) if every else ()) or (model.config.default_k,)
        pairs = [(self.condition, k) for k in ks]
        if every:
            pairs = [
                ("pos_control", ks[0]),
                *(("gist", k) for k in ks),
                ("neg_control", ks[0]),
            ]
        published = 128 if model.hf_model.config.is_encoder_decoder else 512
        return {
            f"{condition}-{k}": AnswerOptions(
                condition=condition,
                num_gist_tokens=k,
                batch_size=self.batch_size,
                max_new_tokens=self.max_new_tokens or published,
                max_length=None if self.max_new_tokens else published,
                path=self.path,
            )
            for condition, k in dict.fromkeys(pairs)
        }


def evaluate_model(
    asked: Evaluation, out: Path, *, as_json: bool, force: bool, verbose: bool
) -> None:
    """Answer, score, write and print.

    Raises:
        GistkitError: the model, the data or an option cannot be used, or `out` holds another
            evaluation.
        KeyboardInterrupt: Ctrl-C; what was answered is kept.
    """
    from gistkit.evaluation.data import read_validation
    from gistkit.evaluation.run import Cases
    from gistkit.files import write_text
    from gistkit.metrics import rouge

    rouge(["a"], ["a"])  # complain before answering that rouge_score is not installed
    splits = read_validation(asked.data, asked.splits, limit=asked.max_samples)
    step = step_of(asked.model)
    metrics = out / f"metrics-{step}.json"
    if metrics.exists() and not force:
        raise SaveError(f"{metrics} exists already; choose another --out, or --force to replace it")
    model = asked.load(verbose=verbose)
    cases = Cases(model, splits, asked.cases(model), out, step, force=force)
    try:
        with progress_bar() as progress:

            def started(what: str, rows: int, done: int) -> Callable[[int], None]:
                return partial(
                    progress.advance, progress.add_task(what, total=rows, completed=done)
                )

            results = cases.answer(started)
    except (KeyboardInterrupt, GistkitError):
        if cases.done:
            say(
                f"stopped; {cases.done} of {cases.total} answers are kept in {out}; "
                "the same command goes on from there"
            )
        raise
    report = {
        **head(asked.seed),
        "versions": _versions(),
        "model": asked.model,
        "fingerprint": model.fingerprint,
        "step": step,
        "config": {**asdict(asked), "out": str(out)},
        **cases.report(results, seed=asked.seed),
    }
    write_text(metrics, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    cases.finish()
    if as_json:
        emit(json.dumps(report, ensure_ascii=False))
    else:
        _print(report)


def step_of(model: str) -> int:
    """The training step that `trainer_state.json` of a model's folder names; 0 without one."""
    try:
        state = json.loads((Path(model) / "trainer_state.json").read_text(encoding="utf-8"))
        return max(0, int(state["global_step"]))
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _print(report: Mapping[str, Any]) -> None:
    for split in dict.fromkeys(score["split"] for score in report["scores"]):
        columns = {score["case"]: score for score in report["scores"] if score["split"] == split}
        differences = {
            f"{pair['a']} - {pair['b']}": pair
            for pair in report["paired"]
            if pair["split"] == split
        }
        print_scores(columns, differences, title=split, names=SHOWN)


def _versions() -> dict[str, str]:
    packages = ("gistkit", "torch", "transformers", "tokenizers", "rouge-score", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
