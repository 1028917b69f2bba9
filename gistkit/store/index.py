"""The index of a folder: who was used when, what is pinned, how much there is. SQLite in WAL mode.

The files are the truth and the index is bookkeeping: it is made again from them where it is lost
or damaged. Its write lock is what keeps the processes of a store apart.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

from gistkit.store.entry import Entry

VERSION = 1
PATIENCE = 120.0
"""Seconds to wait for another process's lock."""

COLUMNS = tuple(field.name for field in fields(Entry))
_TABLES = f"""
CREATE TABLE gists ({", ".join(COLUMNS)}, PRIMARY KEY (id)) WITHOUT ROWID;
CREATE INDEX by_use ON gists (pinned, last_used);
CREATE TABLE counts (name PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
"""


class Index:
    """Rows of entries, and counts.

    Args:
        path: of the file; None: in memory, for a folder that cannot be written.

    Raises:
        sqlite3.Error: here and in every method.

    Attributes:
        fresh: it was empty, so the files must be looked through.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._lock = threading.RLock()
        self._connection = sqlite3.connect(
            ":memory:" if path is None else path,
            timeout=PATIENCE,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            self._set_up()
        except BaseException:
            self._connection.close()
            raise

    def _set_up(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                # SQLite does not wait for this one by itself
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        self._connection.execute("PRAGMA synchronous = FULL")
        with self.transaction():
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            self.fresh = version != VERSION
            if self.fresh:
                for table in ("gists", "counts"):
                    self._connection.execute(f"DROP TABLE IF EXISTS {table}")
                for statement in _TABLES.strip().split("\n"):
                    self._connection.execute(statement)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of what is done inside, or nothing; no other process writes meanwhile."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.rollback()
                raise

    def put(self, entry: Entry) -> None:
        """Write a row, in the place of the one with this id."""
        places = ", ".join(f":{name}" for name in COLUMNS)
        with self._lock:
            self._connection.execute(f"REPLACE INTO gists VALUES ({places})", asdict(entry))

    def delete(self, id: str) -> None:
        """Drop a row."""
        with self._lock:
            self._connection.execute("DELETE FROM gists WHERE id = ?", (id,))

    def find(self, id: str) -> Entry | None:
        """The row with this id."""
        return next(iter(self._select("WHERE id = ?", (id,))), None)

    def entries(self) -> list[Entry]:
        """All rows, the last used first."""
        return self._select("ORDER BY last_used DESC, id")

    def evictable(self, but: str, now: float) -> list[Entry]:
        """What may go for room, in that order: what expired, then the least recently used."""
        return self._select(
            "WHERE id != :but AND (NOT pinned OR expires <= :now)"
            " ORDER BY coalesce(expires <= :now, 0) DESC, last_used, id",
            {"but": but, "now": now},
        )

    def expired(self, now: float) -> list[Entry]:
        """Rows whose time is over."""
        return self._select("WHERE expires <= ?", (now,))

    def totals(self, but: str = "") -> tuple[int, int, int]:
        """Rows, their bytes, and how many are pinned, leaving out the id `but`."""
        with self._lock:
            rows, size, pinned = self._connection.execute(
                "SELECT count(*), total(num_bytes), total(pinned) FROM gists WHERE id != ?", (but,)
            ).fetchone()
        return rows, int(size), int(pinned)

    def use(self, times: Mapping[str, float], counts: Mapping[str, int]) -> None:
        """Note when gists were used, and add to the counts."""
        with self._lock:
            self._connection.executemany(
                "UPDATE gists SET last_used = max(last_used, ?) WHERE id = ?",
                [(time, id) for id, time in times.items()],
            )
            self._connection.executemany(
                "INSERT INTO counts VALUES (?, ?)"
                " ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                list(counts.items()),
            )

    def counts(self) -> dict[str, int]:
        """The counts by name."""
        with self._lock:
            return dict(self._connection.execute("SELECT name, value FROM counts").fetchall())

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    def _select(
        self, rest: str, values: tuple[object, ...] | Mapping[str, object] = ()
    ) -> list[Entry]:
        with self._lock:
            found = self._connection.execute(
                f"SELECT {', '.join(COLUMNS)} FROM gists {rest}", values
            ).fetchall()
        rows = (dict(zip(COLUMNS, row, strict=True)) for row in found)
        return [
            Entry(**{**row, "keyed": bool(row["keyed"]), "pinned": bool(row["pinned"])})
            for row in rows
        ]


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is at fault, and not the disk or another process."""
    return type(error) is sqlite3.DatabaseError  # "malformed" and "not a database" have no other
