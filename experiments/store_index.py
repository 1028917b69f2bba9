"""Does the store need an index? SQLite against a plain scan of the folder.

    python -m experiments.store_index [--sizes 10 1000 100000] [--seconds 5] [--output FOLDER]

Both keep the same files (temporary name, fsync, rename) and answer the same questions; they differ
in where they look. `Sqlite` has a row for each gist. `Scan` looks at names, sizes and access times,
and reads a file's header where more is asked for; it remembers the headers it has read. Times are
in milliseconds, the median over repetitions; `cold` is a new process's first call.
"""

import argparse
import fcntl
import json
import multiprocessing as mp
import os
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch

from gistkit.files import write_text
from gistkit.gist import Gist, Provenance, instruction_hash, read_file
from gistkit.store import Entry, GistKey
from gistkit.store.entry import Record, read_entry

RESULTS = Path(__file__).parent / "results"
READERS = WRITERS = 2


def make_gist(number: int) -> tuple[str, bytes]:
    """The id and the file of a tiny gist."""
    tokens = tuple(f"instruction {number}".encode())
    key = GistKey("m" * 64, "", "t" * 64, "decoder", 1, tokens)
    row = Provenance(instruction_hash(f"instruction {number}"), len(tokens))
    tensors = {"layers.0.keys": torch.full((1, 1, 1, 8), float(number))}
    gist = Gist(tensors, (1,), (row,), "m" * 64, "decoder")
    record = Record.of(key.id, key, gist, created=time.time(), expires=None, pinned=False)
    return key.id, bytes(record.data)


def read_front(path: Path, size: int) -> Entry:
    """What a file says of itself."""
    return read_entry(path.name, read_file(path, front_only=True), num_bytes=size)[1]


class Candidate(Protocol):
    """Where the gists of a folder are looked up."""

    def __init__(self, root: Path) -> None: ...

    def get(self, id: str) -> bytes | None:
        """A gist's bytes; notes that it was used."""

    def put(self, id: str, data: bytes, quota: int) -> int:
        """Write a gist, and evict the least recently used beyond the quota: how many."""

    def entries(self) -> list[Entry]:
        """All gists, the last used first."""


class Scan:
    """The folder is all there is: the access time says when a gist was used."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.headers: dict[str, tuple[tuple[int, int], Entry]] = {}

    def get(self, id: str) -> bytes | None:
        path = self.root / "gists" / id
        try:
            data = path.read_bytes()
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        except FileNotFoundError:
            return None
        return data

    def put(self, id: str, data: bytes, quota: int) -> int:
        temporary = write_new(self.root, data)
        with locked(self.root):
            files = self._files()
            total = sum(file.st_size for file in files.values()) + len(data)
            gone = 0
            if total > quota:
                self._describe(files)
                for victim in sorted(files, key=lambda id: files[id].st_atime_ns):
                    if total <= quota:
                        break
                    if victim in self.headers and not self.headers[victim][1].pinned:
                        (self.root / "gists" / victim).unlink()
                        total -= files[victim].st_size
                        gone += 1
            name_new(self.root, temporary, id)
        return gone

    def entries(self) -> list[Entry]:
        files = self._files()
        self._describe(files)
        used = sorted(files, key=lambda id: -files[id].st_atime_ns)
        return [self.headers[id][1] for id in used if id in self.headers]

    def _files(self) -> dict[str, os.stat_result]:
        found = {}
        with os.scandir(self.root / "gists") as files:
            for file in files:
                try:
                    found[file.name] = file.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
        return found

    def _describe(self, files: dict[str, os.stat_result]) -> None:
        """Read the headers of files that are new."""
        known, self.headers = self.headers, {}
        for id, file in files.items():
            stamp = file.st_ino, file.st_mtime_ns
            if id in known and known[id][0] == stamp:
                self.headers[id] = known[id]
                continue
            try:
                self.headers[id] = stamp, read_front(self.root / "gists" / id, file.st_size)
            except FileNotFoundError:
                continue


COLUMNS = tuple(Entry.__dataclass_fields__)


class Sqlite:
    """A row for each gist, written with it; uses are written down in groups of 256."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.used: dict[str, float] = {}
        self.rows = sqlite3.connect(root / "index.sqlite", timeout=120, isolation_level=None)
        self.rows.execute("PRAGMA journal_mode = WAL")
        self.rows.execute("PRAGMA synchronous = FULL")
        self.rows.execute(
            f"CREATE TABLE IF NOT EXISTS gists ({', '.join(COLUMNS)}, PRIMARY KEY (id))"
        )
        self.rows.execute("CREATE INDEX IF NOT EXISTS by_use ON gists (pinned, last_used)")

    def get(self, id: str) -> bytes | None:
        try:
            data = (self.root / "gists" / id).read_bytes()
        except FileNotFoundError:
            return None
        self.used[id] = time.time()
        if len(self.used) >= 256:
            self._flush()
        return data

    def put(self, id: str, data: bytes, quota: int) -> int:
        temporary = write_new(self.root, data)
        self.rows.execute("BEGIN IMMEDIATE")
        (total,) = self.rows.execute("SELECT total(num_bytes) FROM gists").fetchone()
        total, victims = total + len(data), []
        if total > quota:
            rows = self.rows.execute(
                "SELECT id, num_bytes FROM gists WHERE NOT pinned ORDER BY pinned, last_used"
            )
            for victim, size in rows:
                victims.append(victim)
                total -= size
                if total <= quota:
                    break
        for victim in victims:
            (self.root / "gists" / victim).unlink(missing_ok=True)
            self.rows.execute("DELETE FROM gists WHERE id = ?", (victim,))
        name_new(self.root, temporary, id)
        self._insert(id, len(data))
        self.rows.execute("COMMIT")
        return len(victims)

    def entries(self) -> list[Entry]:
        self._flush()
        with os.scandir(self.root / "gists") as files:
            there = {file.name for file in files}
        rows = self.rows.execute("SELECT * FROM gists ORDER BY last_used DESC, id")
        return [Entry(**dict(zip(COLUMNS, row, strict=True))) for row in rows if row[0] in there]

    def fill(self) -> None:
        """Make the index of what is there."""
        self.rows.execute("BEGIN")
        for file in os.scandir(self.root / "gists"):
            self._insert(file.name, file.stat().st_size)
        self.rows.execute("COMMIT")

    def _insert(self, id: str, size: int) -> None:
        values = asdict(read_front(self.root / "gists" / id, size))
        marks = ", ".join(f":{name}" for name in COLUMNS)
        self.rows.execute(f"REPLACE INTO gists VALUES ({marks})", values)

    def _flush(self) -> None:
        self.rows.execute("BEGIN IMMEDIATE")
        self.rows.executemany(
            "UPDATE gists SET last_used = ? WHERE id = ?",
            [(time, id) for id, time in self.used.items()],
        )
        self.rows.execute("COMMIT")
        self.used = {}


CANDIDATES: dict[str, type[Candidate]] = {"sqlite": Sqlite, "scan": Scan}


def write_new(root: Path, data: bytes) -> Path:
    """A file that is on the disk and has no name yet."""
    path = root / "new" / f"{os.getpid()}.{time.monotonic_ns()}"
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return path


def name_new(root: Path, temporary: Path, id: str) -> None:
    """Give it its name."""
    temporary.replace(root / "gists" / id)
    handle = os.open(root / "gists", os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Keep other processes from writing."""
    handle = os.open(root / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def fill(root: Path, size: int) -> list[str]:
    """A folder of that many gists, and both candidates' bookkeeping."""
    ids = []
    for name in ("gists", "new"):
        (root / name).mkdir()
    for number in range(size):
        id, data = make_gist(number)
        (root / "gists" / id).write_bytes(data)
        ids.append(id)
    Sqlite(root).fill()
    return ids


def measure(name: str, root: Path, ids: list[str], rounds: int) -> dict[str, float]:
    """Milliseconds of each operation, without other processes."""
    kind = CANDIDATES[name]
    opened = [clock(lambda: kind(root)) for _ in range(rounds)]
    quota = sum(file.stat().st_size for file in os.scandir(root / "gists")) + 2**20
    choose = random.Random(0)

    def put(number: int, quota: int) -> Callable[[], int]:
        id, data = make_gist(10**7 + number)
        return lambda: candidate.put(id, data, quota)

    candidate = kind(root)
    found = {"open": median(opened), "list cold": clock(candidate.entries)}
    found["list"] = median(clock(candidate.entries) for _ in range(rounds))
    found["get"] = median(
        clock(lambda: candidate.get(choose.choice(ids))) for _ in range(50 * rounds)
    )
    found["put"] = median(clock(put(n, quota)) for n in range(rounds))
    full = sum(file.stat().st_size for file in os.scandir(root / "gists"))
    candidate = kind(root)
    found["evict cold"] = clock(put(rounds, full))
    found["evict"] = median(clock(put(rounds + n, full)) for n in range(1, rounds + 1))
    return found


def clock(action: Callable[[], object]) -> float:
    """Milliseconds that it takes."""
    start = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - start)


def work(name: str, root: Path, ids: list[str], quota: int, seconds: float, out: Any) -> None:
    """Read these, or write where there are none; how often, and the longest wait."""
    candidate, choose = CANDIDATES[name](root), random.Random()
    writes, times, until = not ids, [], time.monotonic() + seconds
    while time.monotonic() < until:
        if writes:
            id, data = make_gist(choose.randrange(10**8, 10**9))
            times.append(clock(partial(candidate.put, id, data, quota)))
        else:
            times.append(clock(lambda: candidate.get(choose.choice(ids))))
    out.put((writes, len(times), median(times), max(times)))


def contend(name: str, root: Path, seconds: float) -> dict[str, float]:
    """What readers and writers of several processes get done."""
    context = mp.get_context("fork")
    out = context.Queue()
    ids = sorted(path.name for path in (root / "gists").iterdir())[:1000]
    quota = sum(file.stat().st_size for file in os.scandir(root / "gists"))
    workers = [
        context.Process(
            target=work, args=(name, root, [] if number < WRITERS else ids, quota, seconds, out)
        )
        for number in range(WRITERS + READERS)
    ]
    for worker in workers:
        worker.start()
    results = [out.get() for _ in workers]
    for worker in workers:
        worker.join()
    found = {}
    for what, writes in (("evict", True), ("get", False)):
        rows = [row[1:] for row in results if row[0] is writes]
        found[f"{what} each second, {len(rows)} processes"] = sum(n for n, *_ in rows) / seconds
        found[f"{what} median, {len(rows)} processes"] = median(m for _, m, _ in rows)
        found[f"{what} longest, {len(rows)} processes"] = max(m for *_, m in rows)
    return found


def to_markdown(result: dict[str, Any]) -> str:
    """One table."""
    rows = [f"| gists | what (ms) | {' | '.join(CANDIDATES)} |", "|---:|---|---:|---:|"]
    for size, both in result["sizes"].items():
        for what in both["scan"]:
            numbers = " | ".join(f"{both[name][what]:.3g}" for name in CANDIDATES)
            rows.append(f"| {size} | {what} | {numbers} |")
    return (
        f"# SQLite or a scan\n\n{result['machine']}, {result['date']}\n\n" + "\n".join(rows) + "\n"
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 1_000, 100_000])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    date = datetime.now(UTC).date().isoformat()
    result: dict[str, Any] = {"date": date, "machine": os.uname().machine, "sizes": {}}
    for size in options.sizes:
        both = result["sizes"][str(size)] = {}
        for name in CANDIDATES:
            with tempfile.TemporaryDirectory() as folder:
                ids = fill(Path(folder), size)
                both[name] = measure(name, Path(folder), ids, options.rounds)
                both[name] |= contend(name, Path(folder), options.seconds)
            print(f"{size} {name} done", file=sys.stderr, flush=True)
    text = to_markdown(result)
    print(text)
    stem = options.output / f"store_index_cpu_{date}"
    write_text(stem.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    write_text(stem.with_suffix(".md"), text)


if __name__ == "__main__":
    main()
