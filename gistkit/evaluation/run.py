"""Several cases (conditions, numbers of gist tokens) on several splits, side by side, resumable.

    cases x splits ── answer ──> OUT/outputs-{step}-{split}.csv ──> scores, paired differences

Several cases have a folder each (`OUT/gist-2/...`). Answers are kept in `.partial` files until
`finish`, so that what was interrupted goes on.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gistkit.data.collate import Limits
from gistkit.errors import SaveError
from gistkit.evaluation.answers import AnswerOptions
from gistkit.evaluation.saved import KeptAnswers
from gistkit.evaluation.scores import difference
from gistkit.evaluation.splits import SplitResult, evaluate_split, save_answers
from gistkit.model import GistModel
from gistkit.prompts import Example

Started = Callable[[str, int, int], Callable[[int], None]]
"""(what, rows, rows done) -> a function called with the number of rows answered since."""


class Cases:
    """Answers every split in every case.

    Args:
        model: answers.
        splits: examples by split (`validation_unseen`, ...).
        cases: how to answer, by name.
        out: where outputs go.
        step: the model's, for the names of files.
        force: replace outputs and kept answers of another evaluation.

    Raises:
        SaveError: `out` holds outputs, or answers under other settings.
    """

    def __init__(
        self,
        model: GistModel,
        splits: Mapping[str, Sequence[Example]],
        cases: Mapping[str, AnswerOptions],
        out: Path,
        step: int,
        *,
        force: bool = False,
    ) -> None:
        self.model, self.splits, self.cases = model, splits, cases
        self.out, self.step = out, step
        self._kept = {
            (case, split): self._take_up(case, split, force=force)
            for split in splits
            for case in cases
        }

    @property
    def total(self) -> int:
        """How many answers there are to be."""
        return len(self.cases) * sum(map(len, self.splits.values()))

    @property
    def done(self) -> int:
        """How many there are."""
        return sum(len(kept.answers) for kept in self._kept.values())

    def outputs(self, case: str, split: str) -> Path:
        """Where the outputs of a case on a split go."""
        folder = self.out if len(self.cases) == 1 else self.out / case
        return folder / f"outputs-{self.step}-{split}.csv"

    def answer(self, started: Started) -> dict[tuple[str, str], SplitResult]:
        """Results by case and split; outputs are written as they come.

        Args:
            started: called before each case and split.

        Raises: as `evaluate_split`; SaveError.
        """
        return {
            (case, split): self._answer(case, split, kept, started)
            for (case, split), kept in self._kept.items()
        }

    def finish(self) -> None:
        """Remove what was kept on the way; the results are somewhere else now."""
        for kept in self._kept.values():
            kept.remove()

    def report(
        self, results: Mapping[tuple[str, str], SplitResult], *, seed: int
    ) -> dict[str, list[dict[str, Any]]]:
        """`scores` of each case and split; `paired` differences to pos_control, as JSON values."""
        scores = [
            {
                "case": case,
                "condition": self.cases[case].condition,
                "num_gist_tokens": self.cases[case].num_gist_tokens,
                "split": split,
                "outputs": str(self.outputs(case, split)),
                **result.scores.report(seed=seed),
                "gen_len": result.gen_len,
                "loss": result.loss,
                "perplexity": result.perplexity,
            }
            for (case, split), result in results.items()
        ]
        controls = [name for name, case in self.cases.items() if case.condition == "pos_control"]
        paired = [
            {"a": case, "b": control, "split": split}
            | difference(result.scores, results[control, split].scores, seed=seed)
            for (case, split), result in results.items()
            for control in controls
            if self.cases[case].condition != "pos_control"
        ]
        return {"scores": scores, "paired": paired}

    def _answer(self, case: str, split: str, kept: KeptAnswers, started: Started) -> SplitResult:
        examples, options = self.splits[split], self.cases[case]
        advance = started(
            f"{case} {split.removeprefix('validation_')}", len(examples), len(kept.answers)
        )

        def found(answers: Mapping[int, str]) -> None:
            kept.add(answers)
            advance(len(answers))

        result = evaluate_split(
            self.model,
            examples,
            options,
            Limits.for_split(split),
            known=dict(kept.answers),
            found=found,
        )
        path, k = self.outputs(case, split), options.num_gist_tokens
        save_answers(path, self.model, examples, result.answers, k)
        return result

    def _take_up(self, case: str, split: str, *, force: bool) -> KeptAnswers:
        path = self.outputs(case, split)
        partial = path.with_name(path.name + ".partial")
        if path.exists() and not partial.exists() and not force:
            raise SaveError(
                f"{path} exists already; choose another --out, or --force to replace it"
            )
        examples = self.splits[split]
        texts = [[example.instruction, example.input, example.output] for example in examples]
        settings = {
            "model": self.model.fingerprint,
            "template": self.model.config.template,
            "device": self.model.device.type,
            "data": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
            **asdict(self.cases[case]),
        }
        return KeptAnswers(partial, settings, rows=len(examples), force=force)
