"""Where the results of many prompts go: standard output, or a file that is whole or `.partial`."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gistkit.cli.run import emit
from gistkit.errors import SaveError

Result = Mapping[str, Any]


class Stdout:
    """Results on standard output, as soon as they are there."""

    done = 0

    def write(self, results: Sequence[Result]) -> None:
        """Print results (raises SaveError)."""
        emit("\n".join(map(_dumps, results)))
        self.done += len(results)

    def finish(self) -> None:
        """Nothing is left to do."""

    def kept(self, total: int) -> str:
        """What became of the results so far."""
        return f"stopped; {self.done} of {total} results are written"


class PartialFile:
    """Results in `FILE.partial`, which becomes `FILE` once all are there.

    A `.partial` that an earlier run left is gone on from, if its results answer the first of the
    `expected` prompts under the same model and options.

    Attributes:
        done: results that are there.

    Raises:
        SaveError: it is of another run (unless `force`, which starts anew), or cannot be written.
    """

    def __init__(self, path: Path, expected: Sequence[Result], *, force: bool = False) -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self.done = 0
        with _saving(self.path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if self.partial.exists():
                self._take_up(expected, force=force)

    def write(self, results: Sequence[Result]) -> None:
        """Append results (raises SaveError)."""
        with _saving(self.path), self.partial.open("a", encoding="utf-8") as file:
            file.writelines(_dumps(result) + "\n" for result in results)
        self.done += len(results)

    def finish(self) -> None:
        """Give the file its name (raises SaveError)."""
        with _saving(self.path), self.partial.open("ab") as file:
            os.fsync(file.fileno())
            self.partial.replace(self.path)

    def kept(self, total: int) -> str:
        """What became of the results so far, and how to go on."""
        return (
            f"stopped; {self.done} of {total} results are kept in {self.partial}; "
            "the same command goes on from there"
        )

    def _take_up(self, expected: Sequence[Result], *, force: bool) -> None:
        whole = 0  # bytes of lines that are whole: a full disk may have cut the last
        for line in self.partial.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            if not self._fits(line, expected):
                if not force:
                    raise SaveError(
                        f"{self.partial} holds results of other prompts, another model or other "
                        "options; remove it, or add --force to start anew"
                    )
                whole = self.done = 0
                break
            whole += len(line)
            self.done += 1
        os.truncate(self.partial, whole)

    def _fits(self, line: bytes, expected: Sequence[Result]) -> bool:
        try:
            result = json.loads(line)
        except ValueError:
            return False
        return (
            isinstance(result, dict)
            and self.done < len(expected)
            and expected[self.done].items() <= result.items()
        )


@contextmanager
def _saving(path: Path) -> Iterator[None]:
    """Turn what goes wrong while writing into a SaveError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, SaveError):
            raise
        reason = error.strerror or str(error)
        raise SaveError(
            f"could not write {path}: {reason}; free space or choose another place"
        ) from error


def _dumps(result: Result) -> str:
    return json.dumps(result, ensure_ascii=False)
