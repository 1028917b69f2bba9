"""Verdicts are saved one a line in a journal, and in the results file at the end.

A line is written before the next question is asked, so a killed run loses no verdict that it
received; the next run reads the journal and asks only the remaining questions.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gistkit.errors import DataError, SaveError
from gistkit.evaluation.judge.endpoint import Reply, Usage
from gistkit.evaluation.judge.pairs import Pair, Question
from gistkit.evaluation.judge.results import SCHEMA_VERSION, Verdicts, read_results, verdicts
from gistkit.files import check_target, write_text
from gistkit.resumable import Entry, Journal, differences

FIXED = ("model", "temperature", "seed", "prompt", "names")  # others may change between runs
START_OVER = "choose another results file, or pass `force=True` to start over"


class VerdictJournal:
    """The verdicts on `pairs`, those that earlier runs left included.

    Args:
        path: of the results file.
        names: of the answers, as `Pair.a` and `Pair.b`.
        settings: of the judge; those in `FIXED` must stay the same.
        prices: US dollars per million prompt and completion tokens, where known.
        force: start over; the old file is deleted when the first new verdict comes.

    Raises:
        DataError: the file is no results file.
        SaveError: it holds other answers or settings (unless `force`), or cannot have this name.
    """

    def __init__(
        self,
        path: Path,
        pairs: Sequence[Pair],
        *,
        names: tuple[str, str],
        settings: Mapping[str, Any],
        prices: tuple[float, float] | None = None,
        force: bool = False,
    ) -> None:
        check_target(path)
        if path.suffix in (".gz", ".xz"):
            raise SaveError(f"{path} would be no archive: verdicts are written as plain JSON")
        self.path, self.names, self.prices = path, names, prices
        self.settings = dict(settings)
        self.usage = Usage()
        self._pairs, self._force = pairs, force
        self._results: dict[tuple[int, bool], Entry] = {}
        self._failures: dict[tuple[int, bool], Entry] = {}
        try:
            if path.exists() and not force:
                self._read_results()
            head = {**settings, "names": names, "usage": asdict(self.usage)}
            self.journal = Journal(path, head, fixed=FIXED, force=force)
            if force:
                self.journal.restart(replace=True)
            elif self.journal.found:
                self._read_journal(self.journal.found)
        except (LookupError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} or its journal: no file of verdicts ({error!r}); {START_OVER}"
            ) from error

    def left(self, questions: Iterable[Question]) -> list[Question]:
        return [question for question in questions if question.key not in self._results]

    def record(self, question: Question, reply: Reply) -> None:
        """Save a reply (raises SaveError)."""
        entry = self._entry(question)
        if reply.verdict is None:
            entry = {"error": reply.error, **entry}
        else:
            choice = reply.verdict.of_pair(question)
            entry = {"reason": reply.verdict.reason, "choice": choice, **entry}
        self.journal.append({**entry, "usage": asdict(reply.usage)})
        self._add(entry)
        self.usage += reply.usage

    def close(self, questions: Sequence[Question]) -> Verdicts:
        """Write the results file and delete the journal (raises SaveError).

        `questions` are all that should have a verdict. If nothing was judged, nothing is written,
        and `force` replaces nothing.
        """
        try:
            content = self._content(questions)
            judged = bool(content["results"] or content["failures"])
            if judged:
                a, b = verdicts(content, str(self.path)).tally.points
                content["scores"] = {self.names[1]: b, self.names[0]: a}
                write_text(self.path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
            if judged or not self._force:
                self.journal.remove()
            return verdicts(content, str(self.path))
        finally:
            self.journal.close()

    def failures(self, questions: Iterable[Question]) -> dict[int, str]:
        """Why rows have no verdict, by row."""
        return {
            question.pair.row: self._failures[question.key]["error"]
            for question in questions
            if question.key in self._failures
        }

    @property
    def cost(self) -> float | None:
        """US dollars spent so far; None where no price is known."""
        if self.prices is None:
            return None
        prompt, completion = self.prices
        spent = self.usage.prompt_tokens * prompt + self.usage.completion_tokens * completion
        return round(spent / 1e6, 6)

    def _content(self, questions: Sequence[Question]) -> dict[str, Any]:
        rows = {question.pair.row for question in questions}
        return {
            "names": {"a": self.names[0], "b": self.names[1]},
            "scores": {},
            "results": [self._results[key] for key in sorted(self._results)],
            "estimated_cost": self.cost,
            "schema_version": SCHEMA_VERSION,
            "complete": not self.left(questions),
            "rows": max(len(rows), len({row for row, _ in self._results})),
            "failures": [self._failures[key] for key in sorted(self._failures)],
            "usage": asdict(self.usage),
            "judge": self.settings,
        }

    def _entry(self, question: Question) -> Entry:
        pair = question.pair
        return {
            "swapped": question.swapped,
            "x": pair.x,
            self.names[0]: pair.a,
            self.names[1]: pair.b,
            "row": pair.row,
        }

    def _add(self, entry: Entry) -> None:
        key = (entry["row"], entry["swapped"])
        if "error" in entry:
            self._failures[key] = entry
        else:
            self._failures.pop(key, None)
            self._results[key] = entry

    def _read_results(self) -> None:
        try:
            read = read_results(self.path)
        except DataError as error:
            raise DataError(f"{error}; {START_OVER}") from error
        content = read.content
        found = {**(content.get("judge") or {}), "names": read.tally.names}
        if changed := differences(found, {**self.settings, "names": self.names}, FIXED):
            raise SaveError(
                f"{self.path} holds verdicts under other settings ({changed}); {START_OVER}"
            )
        self.settings["both_orders"] |= found["both_orders"]
        self.usage = Usage(**content["usage"])
        for entry in [*content["results"], *content["failures"]]:
            self._check(entry, self.path)
            self._add(entry)

    def _read_journal(self, found: Mapping[str, Any]) -> None:
        if Usage(**found["usage"]) != self.usage:  # the results file took it in before the kill
            self.journal.restart()
            return
        self.settings["both_orders"] |= found["both_orders"]
        for line in self.journal.entries:
            entry = dict(line)
            self.usage += Usage(**entry.pop("usage"))
            self._check(entry, self.journal.path)
            self._add(entry)

    def _check(self, entry: Entry, path: Path) -> None:
        row = entry["row"]
        if row >= len(self._pairs) or entry != {
            **entry,
            **self._entry(Question(self._pairs[row], entry["swapped"])),
        }:
            raise SaveError(f"{path} holds verdicts on other answers (row {row + 1}); {START_OVER}")
