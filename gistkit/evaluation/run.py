"""Evaluate a model: several cases (conditions, numbers of gist tokens) on several splits.

    cases x splits ── answer ──> OUT/outputs-{step}-{split}.csv ──> scores, paired differences
                                                               └──> OUT/metrics-{step}.json

Several cases have a folder each (`OUT/gist-2/...`). Answers are saved batch by batch in `.partial`
files, so that an interrupted evaluation resumes.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from gistkit.conditions import CONDITIONS, FULL_PROMPT, NO_PROMPT
from gistkit.data.collate import Limits
from gistkit.errors import OptionError, SaveError
from gistkit.evaluation.answers import AnswerOptions
from gistkit.evaluation.scores import report_head
from gistkit.evaluation.splits import SplitResult, evaluate_split, save_answers
from gistkit.files import write_text
from gistkit.metrics import difference
from gistkit.model import GistModel
from gistkit.prompts import Example
from gistkit.report import PACKAGES, versions
from gistkit.resumable import Journal

ALL = "all"
EXISTS = "exists already; choose another `out`, or `force=True` to replace it"
Started = Callable[[str, int, int], Callable[[int], object]]
"""(what, rows, rows done) -> a function called with the number of rows answered since."""


def answer_options(
    model: GistModel,
    condition: str = "gist",
    num_gist_tokens: Sequence[int] = (),
    *,
    batch_size: int = 8,
    max_new_tokens: int | None = None,
    path: str = "cache",
) -> dict[str, AnswerOptions]:
    """How to answer, by case: `gist-2`, `pos_control-1`, ...

    Args:
        condition: one of them, or "all": gists of every k between the two controls.
        num_gist_tokens: none: the model's default; of all conditions, every trained number.
        max_new_tokens: None: as published, 128; decoder-only 512 with the prompt.

    Raises:
        OptionError: an unknown condition or path, or a k that the model was not trained for.
    """
    trained = model.config.num_gist_tokens
    for k in num_gist_tokens:
        if trained and k not in trained:
            known = ", ".join(map(str, trained))
            raise OptionError(
                f"`num_gist_tokens={k}`: this model was trained for {known} gist tokens"
            )
    every = tuple(sorted(trained)) if condition == ALL else ()
    ks = tuple(num_gist_tokens) or every or (model.config.default_k,)
    pairs = [(condition, k) for k in ks]
    if condition == ALL:  # the full prompt first, which the others are compared with
        names = sorted(CONDITIONS, key=lambda name: CONDITIONS[name].mode != FULL_PROMPT)
        pairs = [(name, k) for name in names for k in (ks if _depends_on_k(name) else ks[:1])]
    published = 128 if model.hf_model.config.is_encoder_decoder else 512
    return {
        f"{name}-{k}": AnswerOptions(
            condition=name,
            num_gist_tokens=k,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens or published,
            max_length=None if max_new_tokens else published,
            path=path,
        )
        for name, k in dict.fromkeys(pairs)
    }


class Evaluation:
    """Answers every split in every case, scores the answers, writes outputs and metrics.

        with Evaluation(model, splits, answer_options(model, "all"), Path("out")) as evaluation:
            report = evaluation.run()

    Args:
        splits: examples by split (`validation_unseen`, ...).
        step: of the model, for the names of files.
        force: replace what `out` holds of another evaluation; otherwise raise SaveError.
    """

    def __init__(
        self,
        model: GistModel,
        splits: Mapping[str, Sequence[Example]],
        cases: Mapping[str, AnswerOptions],
        out: Path,
        *,
        step: int = 0,
        force: bool = False,
    ) -> None:
        self.model, self.splits, self.cases, self.step = model, splits, cases, step
        self.metrics = metrics_file(out, step, force=force)
        self.outputs = {
            (case, split): (out if len(cases) == 1 else out / case) / f"outputs-{step}-{split}.csv"
            for split in splits
            for case in cases
        }
        self._journals = {
            (case, split): self._journal(case, split, force=force) for case, split in self.outputs
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for journal in self._journals.values():
            journal.close()

    @property
    def total(self) -> int:
        return len(self.cases) * sum(map(len, self.splits.values()))

    @property
    def done(self) -> int:
        return sum(len(journal.entries) for journal in self._journals.values())

    def run(
        self,
        *,
        seed: int = 0,
        about: Mapping[str, Any] | None = None,
        started: Started = lambda what, rows, done: lambda rows: None,
    ) -> dict[str, Any]:
        """Answer the remaining examples; returns the content of `metrics-{step}.json`.

        That is `scores` of each case and split, `paired` differences to the full prompt, settings,
        versions, and the JSON values of `about`. `seed` is that of the intervals; `started` is
        called before each case and split. Raises SaveError, and what `evaluate_split` raises.
        """
        results = {
            (case, split): self._answer(case, split, started) for case, split in self.outputs
        }
        report = {
            **report_head(seed),
            "versions": versions((*PACKAGES, "rouge-score")),
            "fingerprint": self.model.fingerprint,
            "step": self.step,
            **(about or {}),
            "scores": [
                {
                    "case": case,
                    "condition": self.cases[case].condition,
                    "num_gist_tokens": self.cases[case].num_gist_tokens,
                    "split": split,
                    "outputs": str(self.outputs[case, split]),
                    **result.scores.report(seed=seed),
                    **result.by_model(),
                }
                for (case, split), result in results.items()
            ],
            "paired": self._differences(results, seed),
        }
        write_text(self.metrics, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        for journal in self._journals.values():
            journal.remove()
        return report

    def _journal(self, case: str, split: str, *, force: bool) -> Journal:
        path, examples = self.outputs[case, split], self.splits[split]
        texts = [[example.instruction, example.input, example.output] for example in examples]
        settings = {
            "model": self.model.fingerprint,
            "template": self.model.config.template,
            "device": self.model.device.type,
            "data": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
            **asdict(self.cases[case]),
        }
        journal = Journal(path, settings, force=force)
        if path.exists() and not journal.path.exists() and not force:
            raise SaveError(f"{path} {EXISTS}")
        return journal

    def _answer(self, case: str, split: str, started: Started) -> SplitResult:
        examples, options = self.splits[split], self.cases[case]
        journal = self._journals[case, split]
        known = {
            entry["row"]: entry["answer"]
            for entry in journal.entries
            if entry.get("row") in range(len(examples)) and isinstance(entry.get("answer"), str)
        }
        advance = started(f"{case} {split.removeprefix('validation_')}", len(examples), len(known))

        def found(answers: Mapping[int, str]) -> None:
            journal.append(*({"row": row, "answer": answer} for row, answer in answers.items()))
            advance(len(answers))

        limits = Limits.for_split(split)
        result = evaluate_split(self.model, examples, options, limits, known=known, found=found)
        path, k = self.outputs[case, split], options.num_gist_tokens
        save_answers(path, self.model, examples, result.answers, k)
        return result

    def _differences(
        self, results: Mapping[tuple[str, str], SplitResult], seed: int
    ) -> list[dict[str, Any]]:
        """Of each case to that of the full prompt, if it was evaluated too."""
        modes = {case: CONDITIONS[options.condition].mode for case, options in self.cases.items()}
        controls = [case for case, mode in modes.items() if mode == FULL_PROMPT]
        return [
            {"a": case, "b": control, "split": split}
            | difference(result.scores, results[control, split].scores, seed=seed)
            for (case, split), result in results.items()
            for control in controls
            if modes[case] != FULL_PROMPT
        ]


def _depends_on_k(condition: str) -> bool:
    return CONDITIONS[condition].mode not in (FULL_PROMPT, NO_PROMPT)


def metrics_file(out: Path, step: int, *, force: bool = False) -> Path:
    """Where an evaluation's metrics go (raises SaveError where there are some)."""
    path = out / f"metrics-{step}.json"
    if path.exists() and not force:
        raise SaveError(f"{path} {EXISTS}")
    return path


def step_of(model: str) -> int:
    """The training step that `trainer_state.json` of a model's folder names; 0 without one."""
    try:
        state = json.loads((Path(model) / "trainer_state.json").read_text(encoding="utf-8"))
        return max(0, int(state["global_step"]))
    except (OSError, ValueError, KeyError, TypeError):
        return 0
