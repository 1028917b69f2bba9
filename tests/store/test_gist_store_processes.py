"""Many processes and threads at once, and writers killed at any moment."""

import multiprocessing as mp
import os
import random
import subprocess
import sys
import threading
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from gistkit.store import GistStore
from tests.store.store_writers import (
    EACH,
    crowd,
    same_version,
    version_of,
    versioned,
    write_until_killed,
)

OTHER = """
import sys
from gistkit.store import GistStore
with GistStore(sys.argv[1]) as store:
    print(store.stats()["misses"])
"""
KILLS, AT_ONCE = 200, 4


@pytest.fixture(scope="module")
def processes() -> mp.context.ForkServerContext:
    """Children of a process that has imported torch already start in milliseconds."""
    context = mp.get_context("forkserver")
    # what is installed: Python 3.11 looks for the tests' own modules in the wrong place
    context.set_forkserver_preload(["gistkit.store", "gistkit.gist"])
    return context


def test_a_name_comes_after_the_bytes_and_the_answer_after_the_name(
    store: GistStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut leaves cannot be tested here; the order of what the disk is told can."""
    told: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def note_fsync(handle: int) -> None:
        told.append(f"fsync {Path(f'/proc/self/fd/{handle}').resolve().name}")
        fsync(handle)

    def note_rename(self: Path, target: Path) -> Path:
        told.append(f"rename {self.name} {target.name}")
        return rename(self, target)

    key, gist = versioned(1, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", note_fsync)
        patch.setattr(Path, "replace", note_rename)
        store.put(key, gist)
    written = told[0].removeprefix("fsync ")
    assert told == [
        f"fsync {written}",
        f"rename {written} {key.id}.safetensors",
        "fsync gists",
    ]
    (mode,) = store._disk.index._connection.execute("PRAGMA journal_mode").fetchone()
    (level,) = store._disk.index._connection.execute("PRAGMA synchronous").fetchone()
    assert (mode, level) == ("wal", 2)  # FULL: a commit is on the disk when it returns


def test_threads_share_a_store(tmp_path: Path) -> None:
    store = GistStore(tmp_path / "store", max_bytes=60_000, max_memory_bytes=30_000)
    wrong: list[object] = []

    def work(seed: int) -> None:
        choose = random.Random(seed)
        try:
            for _ in range(60):
                number = choose.randrange(20)
                key, gist = versioned(number, number)
                if choose.random() < 0.5:
                    store.put(key, gist)
                elif choose.random() < 0.1:
                    store.remove(key.id)
                elif (found := store.get(key)) is not None:
                    assert version_of(found) == number
            store.entries()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert wrong == []
    assert store.verify()["damaged"] == []
    assert store.stats()["quarantined"] == 0


@pytest.mark.slow
def test_processes_share_a_store(tmp_path: Path, processes: mp.context.ForkServerContext) -> None:
    root, quota = tmp_path / "store", 150_000
    crowds = [
        processes.Process(target=crowd, args=(str(root), seed, 400, quota)) for seed in range(5)
    ]
    for process in crowds:
        process.start()
    for process in crowds:
        process.join(500)
    assert [process.exitcode for process in crowds] == [0] * 5
    time.sleep(0.05)  # the crowd's shortest ttl: nothing may expire between the counts below
    with GistStore(root, max_bytes=quota) as store:
        assert store.verify()["damaged"] == []
        store.gc()
        stats, files = store.stats(), list((root / "gists").iterdir())
        assert stats["quarantined"] == stats["in_quarantine"] == 0
        assert stats["entries"] == len(files) == len(store.entries())
        assert stats["bytes"] == sum(path.stat().st_size for path in files) <= quota
        assert list((root / "new").iterdir()) == []


def expected(log: Path) -> dict[int, set[int]]:
    """By number, the versions that may be served: the last acknowledged, or one begun after it."""
    allowed: dict[int, set[int]] = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        match line.split():
            case ["begin", number, version]:
                allowed.setdefault(int(number), {0}).add(int(version))
            case ["done", number, version]:
                allowed[int(number)] = {int(version)}
    return allowed


def wait_for_work(process: ForkServerProcess, log: Path, size: int) -> None:
    deadline = time.monotonic() + 300
    while not log.exists() or log.stat().st_size <= size:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.slow
def test_killed_writers_lose_nothing_acknowledged(
    tmp_path: Path, processes: mp.context.ForkServerContext
) -> None:
    root, choose = tmp_path / "store", random.Random(0)
    logs = [tmp_path / f"{writer}.log" for writer in range(AT_ONCE)]
    acknowledged = 0
    for round in range(KILLS // AT_ONCE):
        writers = []
        for number, log in enumerate(logs):
            before = log.stat().st_size if log.exists() else 0
            seed = 1 + round * AT_ONCE + number
            process = processes.Process(
                target=write_until_killed, args=(str(root), str(log), number * EACH, seed)
            )
            process.start()
            writers.append((process, log, before))
        for process, log, before in writers:
            wait_for_work(process, log, before)
        for process, _, _ in writers:
            time.sleep(choose.random() * 0.03)
            process.kill()
            process.join(300)
            assert process.exitcode == -9
        with GistStore(root) as store:
            assert store.verify()["damaged"] == []
            for log in logs:
                for number, versions in expected(log).items():
                    assert same_version(store, number) in versions, (round, number)
            assert store.stats()["in_quarantine"] == 0
            files = {path.stem for path in (root / "gists").iterdir()}
            assert files == {entry.id for entry in store.entries()}
    acknowledged = sum(log.read_text().count("done") for log in logs)
    assert acknowledged > KILLS  # they did work in between


def test_two_stores_in_one_process_share_the_index_with_other_processes(tmp_path: Path) -> None:
    """POSIX locks are a process's: one store must not release those of the other."""

    def miss(store: GistStore) -> None:
        store._disk.used(None, "misses")
        store._disk.flush()

    def seen_by_another() -> int:
        command = [sys.executable, "-c", OTHER, str(tmp_path)]
        return int(subprocess.run(command, check=True, capture_output=True).stdout)

    with GistStore(tmp_path) as first, GistStore(tmp_path):
        miss(first)
        assert seen_by_another() == 1
        for _ in range(5):
            miss(first)
        assert first.stats()["misses"] == seen_by_another() == 6
