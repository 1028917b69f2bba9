"""The index of a folder: what is pinned, what was used when, how much there is. SQLite, WAL mode.

The files are the truth, and each says everything of itself but its last use; a lost index is made
again from them. docs/decisions/0010-store-index.md says why there is one.
"""

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from gistkit.store.entry import Entry

VERSION = 2
PATIENCE = 120.0
"""Seconds to wait for another process's lock."""

COLUMNS = tuple(field.name for field in fields(Entry))
_TABLES = f"""
CREATE TABLE gists ({", ".join(COLUMNS)}, mtime_ns, PRIMARY KEY (id)) WITHOUT ROWID;
CREATE INDEX by_use ON gists (pinned, last_used, id, num_bytes);
CREATE INDEX by_expiry ON gists (expires) WHERE expires IS NOT NULL;
CREATE TABLE counts (name PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
PRAGMA user_version = {VERSION};
"""


class Index:
    """Rows of entries, and counts. For one thread at a time; all methods raise sqlite3.Error.

    Args:
        path: its file; None: in memory, for a folder that cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
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
            if version != VERSION:
                for table in ("gists", "counts"):
                    self._connection.execute(f"DROP TABLE IF EXISTS {table}")
                for statement in _TABLES.strip().split("\n"):
                    self._connection.execute(statement)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of what is done inside, or nothing; no other process writes meanwhile."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.rollback()
            raise

    def put(self, entry: Entry, mtime_ns: int) -> None:
        values = ", ".join(f":{name}" for name in COLUMNS)
        self._all(
            f"REPLACE INTO gists VALUES ({values}, :mtime_ns)",
            {**asdict(entry), "mtime_ns": mtime_ns},
        )

    def delete(self, id: str) -> None:
        self._all("DELETE FROM gists WHERE id = ?", (id,))

    def find(self, id: str, mtime_ns: int, num_bytes: int) -> Entry | None:
        """The row with this id, if it was written for a file of this age and size."""
        rest = "WHERE id = ? AND mtime_ns = ? AND num_bytes = ?"
        return next(iter(self._select(rest, (id, mtime_ns, num_bytes))), None)

    def entries(self) -> list[Entry]:
        return self._select("ORDER BY last_used DESC, id")

    def files(self) -> dict[str, tuple[int, int]]:
        """Time of change and size of each row's file, by id."""
        rows = self._all("SELECT id, mtime_ns, num_bytes FROM gists")
        return {id: (mtime_ns, size) for id, mtime_ns, size in rows}

    def victims(self, but: str, size: int, now: float) -> tuple[list[str], int]:
        """What to evict to free `size` bytes, and how many bytes that leaves to be freed.

        First what expired, pinned or not, then the least recently used. The id `but` stays.
        """
        chosen = []
        for which in (
            "expires <= :now",
            "pinned = 0 AND (expires IS NULL OR expires > :now)",
        ):
            rows = self._connection.execute(
                f"SELECT id, num_bytes FROM gists WHERE id != :but AND {which}"
                " ORDER BY last_used, id",
                {"but": but, "now": now},
            )
            while size > 0 and (row := rows.fetchone()) is not None:
                chosen.append(row[0])
                size -= row[1]
            rows.close()  # it is read no further than needed: there may be 100,000
        return chosen, size

    def expired(self, now: float) -> list[str]:
        return [id for (id,) in self._all("SELECT id FROM gists WHERE expires <= ?", (now,))]

    def totals(self, but: str = "") -> tuple[int, int, int]:
        """Rows, their bytes, and how many are pinned, leaving out the id `but`."""
        [(rows, size, pinned)] = self._all(
            "SELECT count(*), total(num_bytes), total(pinned) FROM gists INDEXED BY by_use"
            " WHERE id != ?",
            (but,),
        )
        return rows, int(size), int(pinned)

    def use(self, times: Mapping[str, float], counts: Mapping[str, int]) -> None:
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
        return dict(self._all("SELECT name, value FROM counts"))

    def close(self) -> None:
        self._connection.close()

    def _all(
        self, statement: str, values: tuple[object, ...] | Mapping[str, object] = ()
    ) -> list[Any]:
        return self._connection.execute(statement, values).fetchall()

    def _select(self, rest: str, values: tuple[object, ...] = ()) -> list[Entry]:
        rows = self._all(f"SELECT {', '.join(COLUMNS)} FROM gists {rest}", values)
        found = (dict(zip(COLUMNS, row, strict=True)) for row in rows)
        return [
            Entry(**{**row, "keyed": bool(row["keyed"]), "pinned": bool(row["pinned"])})
            for row in found
        ]


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is at fault, and not the disk or another process."""
    return type(error) is sqlite3.DatabaseError  # "malformed" and "not a database" have no other
