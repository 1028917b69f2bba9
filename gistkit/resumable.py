"""Runs that can be resumed: a journal of finished work beside the file that the run writes.

    FILE.partial    {"settings": {...}}                  decides all entries
                    {"row": 17, "answer": "Paris"}       one entry a line
    FILE            at the end: written by the caller, or the journal renamed

Entries are in the file before `append` returns, so a killed run loses none. A last line without an
end was cut off by a kill or a full disk, and is dropped. A run that writes holds the journal's lock
until it ends, so that no second run does the same work.
"""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from gistkit.errors import SaveError
from gistkit.files import check_target

Entry = dict[str, Any]


class Journal:
    """The entries of earlier runs, and those that this one appends. A context manager.

        with Journal(out, settings, force=force) as journal:
            for row in range(len(journal.entries), len(rows)):
                journal.append(answer(rows[row]))
            write(out, journal.entries)
            journal.remove()

    Args:
        target: the file to be written at the end; the journal is `target` with `.partial`.
        settings: JSON values that decide the entries. None writes no first line: the entries are
            the lines of the target, and the caller checks that they fit.
        fixed: settings that must be those of the journal; None: all.
        force: start over where the journal has other settings or is damaged.

    Attributes:
        entries: JSON objects in the order in which they came; appended ones are added.
        found: the settings of the journal that is there; None where there is none.

    Raises:
        SaveError: the journal has other settings, is damaged, or cannot have this name.
    """

    def __init__(
        self,
        target: Path,
        settings: Mapping[str, Any] | None = None,
        *,
        fixed: Collection[str] | None = None,
        force: bool = False,
    ) -> None:
        self.target = target
        self.path = target.with_name(target.name + ".partial")
        self.entries: list[Entry] = []
        self.found: Entry | None = None
        self._settings: Entry | None = json.loads(json.dumps(settings))
        self._whole = 0  # bytes of whole lines
        self._restart = self._replace = False
        self._file: Any = None
        check_target(target)
        check_target(self.path)
        self._seen = self._stamps()
        try:
            self._read(fixed)
        except SaveError:
            if not force:
                raise
            self.restart()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def restart(self, *, replace: bool = False) -> None:
        """Drop all entries; the file keeps them until the next entry is appended.

        With `replace` that also deletes the target, which a later run would otherwise read.
        """
        self.entries, self.found = [], None
        self._restart, self._replace = True, replace

    def open(self) -> None:
        """Lock the journal for this run, and ensure that there is room for a line.

        `append` does so itself; call this first if no work may begin without the lock.

        Raises:
            SaveError: another run holds it or has changed it since; or there is no room.
        """
        try:
            with self._saving():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("ab")
                if not _lock(self._file) or not self._as_read():
                    self._release()
                    raise SaveError(
                        f"another run is writing {self.target}; when it has ended, rerun the same "
                        "command to resume"
                    )
                if not self._restart:
                    os.truncate(self._file.fileno(), self._whole)
                    self._write_settings()
        except SaveError:
            self.close()
            raise

    def append(self, *entries: Mapping[str, Any]) -> None:
        """Add entries to the file (raises SaveError)."""
        if self._file is None:
            self.open()
        with self._saving():
            self._empty_if_restarted()
            self._write(*entries)
        self.entries += map(dict, entries)

    def finish(self) -> None:
        """Give the journal the name of its target (raises SaveError)."""
        if self._file is None:
            self.open()
        with self._saving():
            self._empty_if_restarted()
            os.fsync(self._file.fileno())
            self.path.replace(self.target)
            self._release()

    def remove(self) -> None:
        """Delete the journal, once its entries are saved elsewhere (raises SaveError)."""
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise SaveError(f"could not remove {self.path}: {error.strerror or error}") from error
        finally:
            self._release()

    def close(self) -> None:
        """Release the journal to other runs. An empty one is deleted."""
        if self._file is None:
            return
        with suppress(OSError):
            if not os.fstat(self._file.fileno()).st_size:
                self.path.unlink()
        self._release()

    def _release(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk, reported when the line was written
                self._file.close()
            self._file = None

    def _read(self, fixed: Collection[str] | None) -> None:
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise self._refusal(f"cannot be read ({error.strerror})") from error
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        self._whole = sum(map(len, lines))
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                entry = None
            if not isinstance(entry, dict):
                raise self._refusal(f"is damaged in line {number}")
            self.entries.append(entry)
        if self._settings is not None and self.entries:
            self.found = self.entries.pop(0).get("settings")
            self._check(fixed)

    def _check(self, fixed: Collection[str] | None) -> None:
        if not isinstance(self.found, dict):
            raise self._refusal("has no settings in its first line")
        assert self._settings is not None
        if changed := differences(self.found, self._settings, fixed):
            raise self._refusal(f"holds results under other settings ({changed})")

    def _refusal(self, why: str) -> SaveError:
        return SaveError(
            f"{self.path} {why}; remove it, choose another output path, or pass `force=True` to "
            "start over"
        )

    def _empty_if_restarted(self) -> None:
        if self._restart:
            os.truncate(self._file.fileno(), 0)
            self._restart = False
            self._write_settings()
            if self._replace:
                self.target.unlink(missing_ok=True)

    def _write_settings(self) -> None:
        if self._settings is not None and not os.fstat(self._file.fileno()).st_size:
            self._write({"settings": self._settings})

    def _write(self, *lines: Mapping[str, Any]) -> None:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        self._file.write(text.encode())
        self._file.flush()

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in (self.target, self.path)]

    def _as_read(self) -> bool:
        """Whether target and journal are those that were read; the journal may be new."""
        target, journal = self._stamps()
        opened = os.fstat(self._file.fileno())
        same = journal is not None and journal[0] == opened.st_ino
        return same and self._seen == [target, journal if opened.st_size or self._seen[1] else None]

    @contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except SaveError:
            raise
        except OSError as error:
            raise SaveError(
                f"could not write {self.target}: {error.strerror or error}; free space or choose "
                "another output path"
            ) from error


def differences(
    found: Mapping[str, Any], wanted: Mapping[str, Any], names: Collection[str] | None = None
) -> str:
    """What differs between two sets of settings, in words; "" where nothing does.

    >>> differences({"k": 2, "seed": 0}, {"k": 4, "seed": 0})
    'k was 2, not 4'
    """
    names = dict.fromkeys([*wanted, *found]) if names is None else names
    return ", ".join(
        f"{name} was {_short(found.get(name))}, not {_short(wanted.get(name))}"
        for name in names
        if found.get(name) != wanted.get(name)
    )


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 20 else f"{text[:12]}..."


def _lock(file: Any) -> bool:
    """Lock an open file; False where another process has."""
    try:
        import fcntl  # POSIX only

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):  # a file system without locks
        pass
    return True


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
