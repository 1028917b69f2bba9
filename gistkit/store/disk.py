"""The folder tier: whole files and their index, for many processes at once.

    gists/<id>.safetensors    the gists; other names are left alone
    new/                      files being written; left over if their writer is killed
    quarantine/               damaged files, with the time in their names
    index.sqlite, lock        bookkeeping

    write   new file, fsync ── transaction: evict ── rename, fsync ── row ── commit
    read    the file alone decides; the index only learns that it was used

A kill between any two of these steps leaves a file without a row, which the next process adds, or a
row without a file, which counts for nothing.
"""

import fcntl
import os
import secrets
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from gistkit.errors import GistFileError, SaveError
from gistkit.files import sync_folder, write_new
from gistkit.gist import check_front, damaged, read_file
from gistkit.store.entry import SUFFIX, Entry, Record, Stamp, file_name, id_of, read_entry
from gistkit.store.index import Index, is_damage

T = TypeVar("T")

NOTED = 256
DELAY = 5.0
"""Uses are written down once there are so many, or after so many seconds."""
LEFTOVER = 3600.0
"""Seconds after which a file in `new` belongs to a writer that was killed."""

FAILURES = (OSError, sqlite3.Error)


class Disk:
    """Checked files below `root`, at most `max_bytes` of them (None: no limit).

    A folder that cannot be written is only read, and written as soon as that is possible. Raises
    SaveError if there is none and it cannot be made.
    """

    name = "disk"

    def __init__(self, root: Path, max_bytes: int | None) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self.gists, self.new = root / "gists", root / "new"
        self.quarantine = root / "quarantine"
        self.writable = False
        self._used: dict[str, float] = {}
        self._counts: Counter[str] = Counter()
        self._noted = time.monotonic()
        self._notes = threading.Lock()
        self._indexing = threading.RLock()
        self._inode: int | None = None  # of the index that is open
        try:
            self._open()
        except FAILURES:
            self.writable = False
            with self._saving():
                if not self.gists.is_dir():
                    raise
                self._check_links()
                self.index = Index(None)
            with self.reading():
                self._add_rows()

    def path(self, id: str) -> Path:
        return self.gists / file_name(id)

    def stamp(self, id: str) -> Stamp | None:
        """Which file there is; None: none that can be seen."""
        try:
            return _stamp(self.path(id).lstat())
        except OSError:
            return None

    def read(self, id: str) -> Record | None:
        """The gist with this id; None: there is none, it expired, or it cannot be read now.

        A damaged one is moved to quarantine (raises GistFileError).
        """
        stamp = self.stamp(id)
        if stamp is None:
            return None
        try:
            file = read_file(self.path(id), check=check_front, follow_symlinks=False)
            record = Record.read(id, file, stamp)
        except IsADirectoryError as error:
            self._set_aside(id, stamp)
            raise damaged(self.path(id), "it is not a regular file") from error
        except OSError:
            return None
        except GistFileError:
            self._set_aside(id, stamp)
            raise
        return None if record.entry.expired(time.time()) else record

    def write(self, record: Record, *, replacing: bool = False) -> Record | None:
        """Keep a gist; when this returns it survives a crash.

        Args:
            replacing: only over one with this id; None is returned if it is there no more.

        Raises SaveError for a full quota or disk, or if it is not writable.
        """
        id, size = record.entry.id, len(record.data)
        with self._saving():
            self._check_writable()
            self._check_fits(size, 0)
            written = self.new / secrets.token_hex(16)
            write_new(written, record.data)

            def commit(index: Index) -> Record | None:
                if replacing and self.stamp(id) is None:
                    return None
                self._make_room(index, id, size)
                if written.exists():  # else this is the second try, with a new index
                    written.replace(self.path(id))
                    sync_folder(self.gists)
                stamp = _stamp(self.path(id).lstat())
                index.put(replace(record.entry, last_used=time.time()), stamp[1])
                return replace(record, stamp=stamp)

            try:
                return self._run(commit, change=True)
            finally:
                written.unlink(missing_ok=True)

    def remove(self, id: str) -> bool:
        def commit(index: Index) -> bool:
            index.delete(id)
            removed = _unlink(self.path(id))
            if removed:
                sync_folder(self.gists)
            return removed

        with self._saving():
            self._check_writable()
            return self._run(commit, change=True)

    def find(self, id: str) -> Entry | None:
        """What is known of a gist, expired or not (raises GistFileError: damaged)."""
        self.flush()
        with self.reading():
            try:
                stamp = _stamp(self.path(id).lstat())
            except FileNotFoundError:
                self.gists.stat()  # without a folder nothing is known
                return None
            row = self._run(lambda index: index.find(id, *stamp[1:]))
            return row or self._describe(id, stamp)

    def entries(self) -> list[Entry]:
        """All gists, the last used first (raises GistFileError: they cannot be read)."""
        self.flush()
        with self.reading():
            there = self._add_rows()
            return [entry for entry in self._run(Index.entries) if entry.id in there]

    def verify(self) -> tuple[set[str], set[str]]:
        """Read everything; the ids that were read, and the damaged ones, now in quarantine."""
        with self.reading():
            ids = set(self._files())
        wrong = set()
        for id in ids:
            try:
                self.read(id)
            except GistFileError:
                wrong.add(id)
        return ids, wrong

    def collect(self) -> dict[str, int]:
        """Remove what expired, rows without files, leftovers; counts (raises SaveError)."""
        self.flush()
        now, removed = time.time(), Counter(expired=0, missing=0, evicted=0, leftovers=0)

        def commit(index: Index) -> None:
            for id in index.expired(now):
                removed["expired"] += _unlink(self.path(id))
                index.delete(id)
            for id in index.files().keys() - self._files().keys():
                removed["missing"] += 1
                index.delete(id)
            removed["evicted"] += self._make_room(index, "", 0)

        with self._saving():
            self._check_writable()
            self._add_rows()
            self._run(commit, change=True)
            for path in self.new.iterdir():
                with suppress(FileNotFoundError):  # it has its name now
                    if path.lstat().st_mtime < now - LEFTOVER:
                        path.unlink()
                        removed["leftovers"] += 1
        return dict(removed)

    def totals(self) -> dict[str, int]:
        self.flush()
        with self.reading():
            rows, size, pinned = self._run(Index.totals)
            aside = len(list(self.quarantine.iterdir()))
            counts = Counter(self._run(Index.counts))
        counts.update(self._counts)  # what could not be written down
        return {"entries": rows, "bytes": size, "pinned": pinned, "in_quarantine": aside, **counts}

    def used(self, id: str | None, *counts: str) -> None:
        """Note that a gist was used, and count; written down a little later, all together."""
        self.note(id, *counts)
        if self.due:
            self.flush()

    def note(self, id: str | None, *counts: str) -> None:
        """As `used`, but without a write."""
        with self._notes:
            if id is not None:
                self._used[id] = time.time()
            self._counts.update(counts)

    @property
    def due(self) -> bool:
        """Whether it is time to write down what was noted."""
        return len(self._used) >= NOTED or time.monotonic() - self._noted > DELAY

    def flush(self) -> None:
        """Write down what was noted; if that fails, it is kept for the next time."""
        with self._notes:
            used, self._used = self._used, {}
            counts, self._counts = self._counts, Counter()
            self._noted = time.monotonic()
        if not used and not counts:
            return
        try:
            self._run(lambda index: index.use(used, counts), change=True)
        except FAILURES:
            with self._notes:
                self._used = {**used, **self._used}
                self._counts.update(counts)

    def close(self) -> None:
        self.flush()
        with self._indexing:
            self.index.close()

    @contextmanager
    def reading(self) -> Iterator[None]:
        try:
            yield
        except FAILURES as error:
            raise GistFileError(f"the store {self.root} cannot be read: {error}") from error

    def _open(self) -> None:
        for folder in (self.root, self.gists, self.new, self.quarantine):
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                sync_folder(folder.parent)
        self._check_links()
        with self._indexing, self._alone():
            self._open_index()
        self.writable = True
        self._add_rows()

    def _check_links(self) -> None:
        for folder in (self.gists, self.new, self.quarantine):
            if folder.is_symlink():
                raise OSError(f"{folder} is a symbolic link")

    def _check_writable(self) -> None:
        if not self.writable:
            try:  # it may have been mounted read-only, and no longer be
                self._open()
            except FAILURES as error:
                self.writable = False
                raise SaveError(
                    f"the store {self.root} cannot be written; check its permissions"
                ) from error

    def _files(self) -> dict[str, tuple[int, int]]:
        """Time of change and size of each file that has a gist's name, by id."""
        found = {}
        with os.scandir(self.gists) as files:
            for file in files:
                if (id := id_of(file.name)) is not None:
                    with suppress(FileNotFoundError):
                        status = file.stat(follow_symlinks=False)
                        found[id] = status.st_mtime_ns, status.st_size
        return found

    def _add_rows(self) -> dict[str, tuple[int, int]]:
        """Give each file its row, if it has none or another file's; all files."""
        rows, files = self._run(Index.files), self._files()
        described = {}
        for id in files:
            if files[id] != rows.get(id) and (stamp := self.stamp(id)) is not None:
                with suppress(GistFileError):  # it is in quarantine now
                    if (entry := self._describe(id, stamp)) is not None:
                        described[id] = entry, stamp[1]

        def commit(index: Index) -> None:
            latest = index.files()
            for id, (entry, mtime_ns) in described.items():
                if latest.get(id) == rows.get(id):  # else another process was faster
                    index.put(entry, mtime_ns)

        if described:
            self._run(commit, change=True)
        return files

    def _describe(self, id: str, stamp: Stamp) -> Entry | None:
        try:
            file = read_file(self.path(id), front_only=True, follow_symlinks=False)
            return read_entry(id, file, num_bytes=stamp[2])[1]
        except IsADirectoryError:
            self._set_aside(id, stamp)
            return None
        except OSError:
            return None
        except GistFileError:
            self._set_aside(id, stamp)
            raise

    def _set_aside(self, id: str, stamp: Stamp) -> None:
        def commit(index: Index) -> None:
            if self.stamp(id) == stamp:  # else it was replaced meanwhile
                self.path(id).rename(self.quarantine / f"{id}.{time.time_ns()}{SUFFIX}")
                index.delete(id)
                index.use({}, {"quarantined": 1})

        if self.writable:
            with suppress(*FAILURES):  # it stays where it is, and is never served
                self._run(commit, change=True)

    def _make_room(self, index: Index, id: str, size: int) -> int:
        if self.max_bytes is None:
            return 0
        _, total, _ = index.totals(but=id)
        victims, missing = index.victims(id, total + size - self.max_bytes, time.time())
        if size and missing > 0:
            self._check_fits(size, missing + self.max_bytes - size)
        for victim in victims:
            _unlink(self.path(victim))
            index.delete(victim)
        index.use({}, {"evictions": len(victims)} if victims else {})
        return len(victims)

    def _check_fits(self, size: int, pinned: int) -> None:
        if self.max_bytes is not None and size + pinned > self.max_bytes:
            raise SaveError(
                f"a gist of {size} bytes does not fit into {self.root}: its quota is "
                f"{self.max_bytes} bytes, {pinned} of them pinned; raise the store's quota or "
                "unpin some"
            )

    def _run(self, action: Callable[[Index], T], *, change: bool = False) -> T:
        """Read or change the index; a lost or damaged one is made again first."""
        with self._indexing:
            if self.writable and _inode(self._index_path) != self._inode:
                self._make_index_again()
            try:
                return self._act(action, change)
            except sqlite3.Error as error:
                if not is_damage(error) or not self.writable:
                    raise
            self._make_index_again(damaged=True)
            return self._act(action, change)

    def _act(self, action: Callable[[Index], T], change: bool) -> T:
        with self.index.transaction() if change else nullcontext():
            return action(self.index)

    @property
    def _index_path(self) -> Path:
        return self.root / "index.sqlite"

    def _make_index_again(self, *, damaged: bool = False) -> None:
        with self._alone():  # closing deletes the log by name: it must not be another index's
            self.index.close()
            opened, self._inode = self._inode, 0  # if this fails, the next call opens it
            if damaged and _inode(self._index_path) == opened:
                self._set_index_aside()
            self._open_index()
        self._add_rows()

    def _open_index(self) -> None:
        # Only SQLite opens the file: closing it here would drop the locks of all its connections in
        # this process (POSIX), and another process would take the index for unused.
        path = self._index_path
        if not path.exists() or not path.stat().st_size:
            self._set_index_aside()
        try:
            self.index = Index(path)
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            self._set_index_aside()
            self.index = Index(path)
        self._inode = _inode(path)

    def _set_index_aside(self) -> None:
        path = self._index_path
        if path.exists() and path.stat().st_size:
            path.rename(self.quarantine / f"index.{time.time_ns()}.sqlite")
        path.unlink(missing_ok=True)
        for end in ("-wal", "-shm"):  # SQLite would take them for the next one's
            path.with_name(path.name + end).unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process opens or replaces the index meanwhile."""
        handle = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    @contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except SaveError:
            raise
        except FAILURES as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise SaveError(
                f"could not write to the store {self.root}: {reason}; "
                "free space or choose another place"
            ) from error


def _unlink(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_ino, status.st_mtime_ns, status.st_size


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None
