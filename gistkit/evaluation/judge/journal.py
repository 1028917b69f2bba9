"""Where verdicts go: a journal beside the results file, a line each, and the file at the end.

A line is on its way to the disk before the next question is asked, so a run that is killed loses
none that it received; the same command reads it and asks only what is left. A run that asks holds
the journal's lock, so that no other asks the same.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gistkit.data.examples import opened
from gistkit.errors import DataError, SaveError
from gistkit.evaluation.judge.endpoint import Answer, Usage
from gistkit.evaluation.judge.pairs import Pair, Question
from gistkit.evaluation.judge.results import Verdicts, verdicts
from gistkit.files import check_target, write_text

SCHEMA_VERSION = 1
_KEPT = ("model", "temperature", "seed", "prompt")  # settings that must not change on the way


class Ledger:
    """The verdicts on `pairs`, those that earlier runs left included.

    Args:
        names: of the answers, as `Pair.a` and `Pair.b`.
        settings: how is judged; see `_KEPT` for those that cannot change.
        prices: US dollars for a million tokens asked and answered, where known.
        force: start anew; what is there goes when the first new verdict comes.

    Raises:
        DataError: the file is no results file.
        SaveError: it is of other answers or other settings (unless `force`), or cannot have this
            name.
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
        self.journal = path.with_name(path.name + ".partial")
        check_target(self.journal)
        self.settings = dict(settings)
        self.usage = Usage()
        self._pairs = pairs
        self._results: dict[tuple[int, bool], dict[str, Any]] = {}
        self._failures: dict[tuple[int, bool], dict[str, Any]] = {}
        self._anew = force
        self._whole = 0  # bytes of the journal that can be read
        self._seen = self._stamps()
        if not force:
            try:
                self._take_up()
            except (LookupError, TypeError, AttributeError) as error:
                raise DataError(
                    f"{path} or {self.journal.name}: no file of verdicts ({error!r}); choose "
                    "another --results_file, or add --force to start anew"
                ) from error
        self._base = self.usage
        self._file: Any = None

    def __len__(self) -> int:
        return len(self._results)

    def left(self, questions: Iterable[Question]) -> list[Question]:
        """Those without a verdict."""
        return [question for question in questions if question.key not in self._results]

    def record(self, question: Question, answer: Answer) -> None:
        """Keep what came of a question (raises SaveError)."""
        entry = self._entry(question)
        if answer.verdict is None:
            entry = {"error": answer.error, **entry}
        else:
            choice = answer.verdict.of_pair(question)
            entry = {"reason": answer.verdict.reason, "choice": choice, **entry}
        self._append({**entry, "usage": asdict(answer.usage)})
        self._add(entry)
        self.usage += answer.usage

    def begin(self) -> None:
        """Take the journal for this run alone, before the first question is asked.

        Raises:
            SaveError: another run has it, or has changed it since it was read; or there is no room.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.journal.open("ab")
            _lock(self._file)
            if not self._as_read():
                raise BlockingIOError
            if not self._anew:
                os.truncate(self._file.fileno(), self._whole)
                self._write_head()
        except BlockingIOError:
            self._release()
            raise SaveError(
                f"another run is judging into {self.path}; when it has ended, the same command "
                "asks what is left"
            ) from None
        except OSError as error:
            self._release()
            raise self._no_room(error) from error

    def close(self, questions: Sequence[Question]) -> Verdicts:
        """Write the results file, whole; the journal goes. `questions`: all that should be there.

        Where nothing was judged, nothing is written.

        Raises SaveError.
        """
        try:
            content = self._content(questions)
            found = verdicts(content, str(self.path))
            if content["results"] or content["failures"]:
                a, b = found.tally.points
                content["scores"] = {self.names[1]: b, self.names[0]: a}
                write_text(self.path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
                found = verdicts(content, str(self.path))
            if content["results"] or content["failures"] or not self._anew or self._is_empty():
                _remove(self.journal)
            return found  # or else the journal is still that of the run before
        finally:
            self._release()

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
        asked, answered = self.prices
        spent = self.usage.prompt_tokens * asked + self.usage.completion_tokens * answered
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

    def _entry(self, question: Question) -> dict[str, Any]:
        pair = question.pair
        return {
            "swapped": question.swapped,
            "x": pair.x,
            self.names[0]: pair.a,
            self.names[1]: pair.b,
            "row": pair.row,
        }

    def _add(self, entry: dict[str, Any]) -> None:
        key = (entry["row"], entry["swapped"])
        if "error" in entry:
            self._failures[key] = entry
        else:
            self._failures.pop(key, None)
            self._results[key] = entry

    def _append(self, line: Mapping[str, Any]) -> None:
        if self._file is None:
            self.begin()
        try:
            if self._anew:
                _remove(self.path)
                os.truncate(self._file.fileno(), 0)
                self._anew = False
                self._write_head()
            self._write(line)
        except OSError as error:
            raise self._no_room(error) from error

    def _write_head(self) -> None:
        """Open an empty journal; room for it is room for a first verdict."""
        if self._is_empty():
            usage = asdict(self._base)
            self._write({"judge": self.settings, "names": self.names, "usage": usage})

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._file.flush()

    def _is_empty(self) -> bool:
        return self._file is not None and os.fstat(self._file.fileno()).st_size == 0

    def _no_room(self, error: OSError) -> SaveError:
        return SaveError(
            f"could not write {self.journal}: {error.strerror or error}; free space or choose "
            "another place"
        )

    def _release(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk, which was told when the line was written
                self._file.close()
            self._file = None

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        """Which files are there: results, journal."""
        return [_stamp(path) for path in (self.path, self.journal)]

    def _as_read(self) -> bool:
        """Whether nobody has written since these files were read; the journal may be new."""
        results, journal = self._stamps()
        mine = os.fstat(self._file.fileno())
        same = journal is not None and journal[0] == mine.st_ino
        known = [results, journal if mine.st_size or self._seen[1] else None]
        return same and known == self._seen

    def _take_up(self) -> None:
        """Read what earlier runs left: the file, and the journal of a run that was killed."""
        if self.path.exists():
            with opened(self.path) as file:
                data = file.read()
            try:
                content = json.loads(data)
            except ValueError as error:
                raise DataError(
                    f"{self.path}: no file of verdicts ({error}); choose another --results_file, "
                    "or add --force to start anew"
                ) from error
            names = verdicts(content, str(self.path)).tally.names
            self._check(content.get("judge") or {}, names, self.path)
            self.usage = Usage(**content["usage"])
            for entry in [*content["results"], *content["failures"]]:
                self._check_entry(entry, self.path)
                self._add(entry)
        if self.journal.exists():
            self._read_journal()

    def _read_journal(self) -> None:
        whole, lines = 0, []
        for line in self.journal.read_bytes().splitlines(keepends=True):
            try:
                lines.append(json.loads(line))
            except ValueError:
                break  # the last one, cut off when the run was killed or the disk was full
            if not line.endswith(b"\n"):
                lines.pop()
                break
            whole += len(line)
        if not lines:
            return
        head, *entries = lines
        self._check(head["judge"], tuple(head["names"]), self.journal)
        if Usage(**head["usage"]) != self.usage:  # the file took it in before the run was killed
            return
        self._whole = whole
        for entry in entries:
            self.usage += Usage(**entry.pop("usage"))
            self._check_entry(entry, self.journal)
            self._add(entry)

    def _check(self, settings: Mapping[str, Any], names: tuple[str, ...], path: Path) -> None:
        changed = [name for name in _KEPT if settings.get(name) != self.settings.get(name)]
        if names != self.names:
            changed.append("names")
        if changed:
            raise SaveError(
                f"{path} holds verdicts with another {' and '.join(changed)}; choose another "
                "--results_file, or add --force to start anew"
            )
        self.settings["both_orders"] |= settings["both_orders"]

    def _check_entry(self, entry: Mapping[str, Any], path: Path) -> None:
        row = entry["row"]
        if row >= len(self._pairs) or entry != {
            **entry,
            **self._entry(Question(self._pairs[row], entry["swapped"])),
        }:
            raise SaveError(
                f"{path} holds verdicts on other answers (row {row + 1}); choose another "
                "--results_file, or add --force to start anew"
            )


def _lock(file: Any) -> None:
    """Lock an open file (raises BlockingIOError where somebody has)."""
    import fcntl  # POSIX only

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        pass


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise SaveError(f"could not remove {path}: {error.strerror or error}") from error
