"""The folder tier: files and their index as one, for many processes at once.

    write   new file, fsync ── lock ── room by eviction ── rename, fsync ── row ── commit
    read    the file alone decides; the index only learns that it was used

A kill between any two of these steps leaves a file without a row, which is adopted, or a row
without a file, which counts for nothing. Knows nothing about memory and remote places.
"""

import fcntl
import os
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from gistkit.errors import GistFileError, SaveError
from gistkit.gist import GistFile, map_bytes
from gistkit.store.entry import Entry, read_entry
from gistkit.store.folder import Folder, Found, Stamp
from gistkit.store.index import Index, is_damage

T = TypeVar("T")

NOTED = 256
DELAY = 5.0
"""Uses are written down once there are so many, or after so many seconds."""

FAILURES = (OSError, sqlite3.Error)


class Disk:
    """Checked files below `root` with at most `max_bytes` of them (None: no limit).

    A folder that cannot be written is read all the same.

    Raises:
        SaveError: there is no folder, and it cannot be made.
    """

    def __init__(self, root: Path, max_bytes: int | None) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self._used: dict[str, float] = {}
        self._counts: Counter[str] = Counter()
        self._noted = time.monotonic()
        self._lock = threading.Lock()
        self._renewing = threading.Lock()
        self.writable = True
        try:
            self.folder = Folder(root)
            with self._alone():
                self._open_index()
        except FAILURES as error:
            self._open_read_only(error)

    def read(self, id: str) -> Found | None:
        """The gist with this id; None: there is none, its time is over, or it cannot be read now.

        Raises:
            GistFileError: it was damaged, and is in quarantine now.
        """
        try:
            stamp = self.folder.stamp(id)
            found = None if stamp is None else self.folder.read(id, stamp)
        except OSError:
            return None
        except GistFileError:
            assert stamp is not None
            self._set_aside(id, stamp)
            raise
        return None if found is None or found.entry.expired(time.time()) else found

    def stamp(self, id: str) -> Stamp | None:
        """Which file there is; None: none that can be seen."""
        try:
            return self.folder.stamp(id)
        except OSError:
            return None

    def write(self, entry: Entry, data: bytes, *, again: bool = False) -> bool:
        """Keep a gist's bytes; when this returns they survive a crash.

        Args:
            again: only where there still is one with this id; False: there is none any more.

        Raises:
            SaveError: no room by the quota or on the disk, or not writable.
        """
        with self._saving():
            self._check_writable()
            self._check_fits(entry.num_bytes, 0)
            written = self.folder.write(data)

            def commit(index: Index) -> bool:
                with index.transaction():
                    if again and self.folder.stamp(entry.id) is None:
                        return False
                    self._make_room(index, entry.id, entry.num_bytes)
                    if written.exists():  # else this is the second try, with a new index
                        self.folder.name(written, entry.id)
                    index.put(entry)
                    return True

            try:
                return self._run(commit)
            finally:
                written.unlink(missing_ok=True)

    def remove(self, id: str) -> bool:
        """Delete a gist; False: there was none (raises SaveError)."""

        def commit(index: Index) -> bool:
            with index.transaction():
                removed = self.folder.remove(id)
                index.delete(id)
            return removed

        with self._saving():
            self._check_writable()
            return self._run(commit)

    def used(self, id: str | None, *counts: str) -> None:
        """Note that a gist was used, and count; written down a little later, all together."""
        self.note(id, *counts)
        if self.due:
            self.flush()

    def note(self, id: str | None, *counts: str) -> None:
        """As `used`, and waits for no file."""
        with self._lock:
            if id is not None:
                self._used[id] = time.time()
            self._counts.update(counts)

    @property
    def due(self) -> bool:
        """Whether it is time to write down what was noted."""
        return len(self._used) >= NOTED or time.monotonic() - self._noted > DELAY

    def flush(self) -> None:
        """Write down what was noted; where that fails, it waits for the next time."""
        with self._lock:
            used, self._used = self._used, {}
            counts, self._counts = self._counts, Counter()
            self._noted = time.monotonic()

        def commit(index: Index) -> None:
            with index.transaction():
                index.use(used, counts)

        if not used and not counts:
            return
        try:
            self._run(commit)
        except FAILURES:
            with self._lock:
                self._used = {**used, **self._used}
                self._counts.update(counts)

    def find(self, id: str) -> Entry | None:
        """What is known of a gist, its time over or not (raises GistFileError: damaged)."""
        self.flush()
        with self.reading():
            if self.folder.stamp(id) is None:
                self.folder.gists.stat()  # without a folder nothing is known
                return None
            return self._run(lambda index: index.find(id)) or self._describe(id)

    def entries(self) -> list[Entry]:
        """All gists, the last used first (raises GistFileError: it cannot be read)."""
        self.flush()
        with self.reading():
            self.adopt()
            there = self.folder.sizes()
            return [entry for entry in self._run(Index.entries) if entry.id in there]

    def adopt(self) -> None:
        """Give every file its row, also where a killed writer has left another file's."""
        rows = {entry.id: entry for entry in self._run(Index.entries)}
        described = []
        for id, size in self.folder.sizes().items():
            if id not in rows or rows[id].num_bytes != size:
                with suppress(GistFileError):  # it is in quarantine now
                    described.append(self._describe(id))

        def commit(index: Index) -> None:
            with index.transaction():
                for entry in described:
                    if entry is not None and index.find(entry.id) == rows.get(entry.id):
                        index.put(entry)

        if described:
            self._run(commit)

    def collect(self) -> dict[str, int]:
        """Remove what expired, rows without files, leftovers; counts (raises SaveError)."""
        self.flush()
        now, removed = time.time(), Counter(expired=0, missing=0, evicted=0, leftovers=0)

        def commit(index: Index) -> None:
            with index.transaction():
                there = self.folder.sizes()
                for entry in index.expired(now):
                    removed["expired"] += self.folder.remove(entry.id)
                    index.delete(entry.id)
                for entry in index.entries():
                    if entry.id not in there:
                        removed["missing"] += 1
                        index.delete(entry.id)
                removed["evicted"] += self._make_room(index, "", 0)

        with self._saving():
            self._check_writable()
            self.adopt()
            self._run(commit)
            for path in self.folder.leftovers(now):
                path.unlink(missing_ok=True)
                removed["leftovers"] += 1
        return dict(removed)

    def totals(self) -> dict[str, int]:
        """Entries, bytes, pinned, files in quarantine, and all counts."""
        self.flush()
        with self.reading():
            rows, size, pinned = self._run(Index.totals)
            aside = len(self.folder.quarantined())
            counts = Counter(self._run(Index.counts))
        counts.update(self._counts)  # what could not be written down
        return {"entries": rows, "bytes": size, "pinned": pinned, "in_quarantine": aside, **counts}

    def close(self) -> None:
        """Write down what was noted, and let go of the index."""
        self.flush()
        self.index.close()

    def _open_read_only(self, error: Exception) -> None:
        if not (self.root / "gists").is_dir():
            raise self._error(error) from error
        with self._saving():
            self.folder, self.index = Folder(self.root, make=False), Index(None)
        self.writable = False
        with self.reading():
            self.adopt()

    def _make_room(self, index: Index, id: str, size: int) -> int:
        if self.max_bytes is None:
            return 0
        _, total, _ = index.totals(but=id)
        if total + size <= self.max_bytes:
            return 0
        victims = []
        for entry in index.evictable(id, time.time()):
            victims.append(entry.id)
            total -= entry.num_bytes
            if total + size <= self.max_bytes:
                break
        else:
            if size:
                self._check_fits(size, total)
        for victim in victims:
            self.folder.remove(victim, durably=False)
            index.delete(victim)
        index.use({}, {"evictions": len(victims)})
        return len(victims)

    def _check_fits(self, size: int, pinned: int) -> None:
        if self.max_bytes is not None and size + pinned > self.max_bytes:
            raise SaveError(
                f"a gist of {size} bytes does not fit into {self.root}: its quota is "
                f"{self.max_bytes} bytes, {pinned} of them pinned; raise it or unpin some"
            )

    def _check_writable(self) -> None:
        if not self.writable:
            raise SaveError(f"the store {self.root} cannot be written; check its permissions")

    def _describe(self, id: str) -> Entry | None:
        stamp = self.folder.stamp(id)
        if stamp is None:
            return None
        path = self.folder.path(id)
        try:
            file = GistFile.of(map_bytes(path, follow_symlinks=False), path)
            return read_entry(id, file, num_bytes=stamp[2])
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
            with index.transaction():
                if self.folder.stamp(id) == stamp:  # not written anew meanwhile
                    self.folder.set_aside(id)
                    index.delete(id)
                    index.use({}, {"quarantined": 1})

        if self.writable:
            with suppress(*FAILURES):  # it stays where it is, and is never served
                self._run(commit)

    def _run(self, action: Callable[[Index], T]) -> T:
        index = self.index
        try:
            return action(index)
        except sqlite3.Error as error:
            if not is_damage(error) or not self.writable:
                raise
        with self._renewing, self._alone():
            if self.index is index:  # no other thread was quicker
                index.close()
                self._open_index(damaged=self._inode)
        return action(self.index)

    def _open_index(self, *, damaged: int | None = None) -> None:
        path = self.root / "index.sqlite"
        if damaged is not None and path.exists() and path.stat().st_ino == damaged:
            self._set_index_aside(path)
        try:
            self.index = Index(path)
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            self._set_index_aside(path)
            self.index = Index(path)
        self._inode = path.stat().st_ino
        if self.index.fresh:
            self.adopt()

    def _set_index_aside(self, path: Path) -> None:
        path.rename(self.folder.aside / f"index.{time.time_ns()}.sqlite")
        for end in ("-wal", "-shm"):
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
            raise self._error(error) from error

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Failures inside as GistFileError."""
        try:
            yield
        except FAILURES as error:
            raise GistFileError(f"the store {self.root} cannot be read: {error}") from error

    def _error(self, error: Exception) -> SaveError:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return SaveError(
            f"could not write to the store {self.root}: {reason}; "
            "free space or choose another place"
        )
