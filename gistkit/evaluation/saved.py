"""Answers kept while a split is being answered, so that an interrupted evaluation goes on.

{"settings": {...}}                  what all answers follow from
{"row": 17, "answer": "Paris"}       in the order they were found
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gistkit.errors import SaveError
from gistkit.files import write_text


class KeptAnswers:
    """Answers by row in a file of JSON lines.

    Attributes:
        answers: those that are there.

    Args:
        path: the file; what an earlier run left there is gone on from.
        settings: JSON values that decide the answers.
        rows: how many rows there are.
        force: start anew where the file holds answers under other settings.

    Raises:
        SaveError: the file holds answers under other settings, or cannot be read or written.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], *, rows: int, force: bool = False
    ) -> None:
        self.path = path
        self.answers: dict[int, str] = {}
        if path.exists():
            self._take_up(settings, rows, force=force)
        # written anew: a full disk may have cut the last line
        lines: list[Mapping[str, Any]] = [{"settings": settings}]
        lines += [{"row": row, "answer": answer} for row, answer in self.answers.items()]
        write_text(path, "".join(map(_line, lines)))

    def add(self, answers: Mapping[int, str]) -> None:
        """Keep some more (raises SaveError)."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(_line({"row": r, "answer": a}) for r, a in answers.items())
        except OSError as error:
            reason = error.strerror or str(error)
            raise SaveError(f"could not write {self.path}: {reason}; free space") from error
        self.answers.update(answers)

    def remove(self) -> None:
        """Remove the file; the answers are somewhere else now."""
        self.path.unlink(missing_ok=True)

    def _take_up(self, settings: Mapping[str, Any], rows: int, *, force: bool) -> None:
        try:
            first, *lines = self.path.read_bytes().splitlines() or [b""]
        except OSError as error:
            raise SaveError(f"could not read {self.path}: {error.strerror}; remove it") from error
        found = _parse(first).get("settings")
        if found != settings:
            if force:
                return
            raise SaveError(
                f"{self.path} holds answers of another evaluation ({_differs(found, settings)}); "
                "remove it, choose another --out, or add --force to start anew"
            )
        for line in map(_parse, lines):
            row, answer = line.get("row"), line.get("answer")
            if isinstance(row, int) and 0 <= row < rows and isinstance(answer, str):
                self.answers[row] = answer


def _differs(found: object, settings: Mapping[str, Any]) -> str:
    """The first setting that differs, in words."""
    if not isinstance(found, dict):
        return "its first line says of none"
    name = next(n for n in {**settings, **found} if found.get(n) != settings.get(n))
    return f"{name} was {_short(found.get(name))}, not {_short(settings.get(name))}"


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 20 else f"{text[:12]}..."


def _parse(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
