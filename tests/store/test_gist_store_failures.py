"""Damage, full disks, read-only folders, lost indexes: nothing wrong is ever served."""

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gistkit.errors import GistFileError, SaveError
from gistkit.gist import Gist
from gistkit.store import GistKey, GistStore
from gistkit.store.disk import LEFTOVER
from gistkit.store.index import Index
from gistkit.testing import tiny_gist_model
from tests.store.store_pairs import holds

Make = Callable[..., tuple[GistKey, Gist]]
FULL = OSError(28, "No space left on device")


def file_of(store: GistStore, key: GistKey) -> Path:
    return store._disk.path(key.id)


def damage(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("in_memory", [False, True])
def test_damage_is_found_quarantined_and_recomputed(store: GistStore, in_memory: bool) -> None:
    model = tiny_gist_model()
    gist = store.get_or_compress(model, "Be brief.")
    key = GistKey.of(model, "Be brief.")
    if in_memory:
        assert store.get(key) is not None
    damage(file_of(store, key))
    assert store.get(key) is None
    assert store.find(key.id) is None
    assert store.stats()["quarantined"] == store.stats()["in_quarantine"] == 1
    again = store.get_or_compress(model, "Be brief.")
    assert all((t == gist.tensors[n]).all() for n, t in again.tensors.items())
    assert store.get(key) is not None
    damage(file_of(store, key))
    with pytest.raises(GistFileError, match=r"is damaged .its digest"):
        store.load(key.id)


def test_a_folder_that_goes_away_and_comes_back(store: GistStore, pair: Make) -> None:
    key, gist = pair()
    store.put(key, gist)
    root = Path(store.place)
    away = root.rename(root.with_name("away"))
    for _ in range(2):
        assert store.get(key) is None
        with pytest.raises(GistFileError, match=r"cannot be read.*No such file"):
            store.entries()
        with pytest.raises(SaveError, match="No such file"):
            store.put(*pair(1))
    away.rename(root)
    assert [entry.id for entry in store.entries()] == [key.id]
    store.put(*pair(1))
    assert len(store.entries()) == 2 and holds(store.get(key), 0)
    damage(file_of(store, key))
    assert store.get(key) is None and store.stats()["quarantined"] == 1


def test_verify_finds_all_damage(store: GistStore, pair: Make) -> None:
    keys = []
    for number in range(6):
        keys.append(pair(number)[0])
        store.put(*pair(number))
        store.get(keys[-1])
    damage(file_of(store, keys[0]), 3)
    damage(file_of(store, keys[1]), 200)
    file_of(store, keys[2]).write_bytes(b"")
    file_of(store, keys[3]).write_bytes(file_of(store, keys[4]).read_bytes())
    found = store.verify()
    assert found == {"checked": 6, "damaged": sorted(key.id for key in keys[:4])}
    assert store.verify() == {"checked": 2, "damaged": []}
    assert [store.get(key) is not None for key in keys] == [False] * 4 + [True] * 2


def test_a_gist_that_no_store_wrote_is_not_served(store: GistStore, pair: Make) -> None:
    key, gist = pair()
    gist.save(file_of(store, key))
    assert store.get(key) is None
    assert store.stats()["quarantined"] == 1


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
def test_links_and_pipes_are_not_followed(
    store: GistStore, pair: Make, tmp_path: Path, kind: str
) -> None:
    key, gist = pair()
    store.put(key, gist)
    outside = tmp_path / "outside.safetensors"
    shutil.move(file_of(store, key), outside)
    if kind == "link":
        file_of(store, key).symlink_to(outside)
    elif kind == "dangling":
        file_of(store, key).symlink_to(tmp_path / "nothing")
    elif kind == "pipe":
        os.mkfifo(file_of(store, key))
    else:
        file_of(store, key).mkdir()
    assert store.get(key) is None
    assert store.entries() == []
    store.put(key, gist)
    assert store.get(key) is not None
    assert outside.is_file()


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "store"
    (root / "gists").mkdir(parents=True)
    (root / "gists").rmdir()
    (tmp_path / "else").mkdir()
    (root / "gists").symlink_to(tmp_path / "else")
    with pytest.raises(SaveError, match="is a symbolic link"):
        GistStore(root)


def test_other_files_are_left_alone(store: GistStore, pair: Make) -> None:
    store.put(*pair())
    gists = store._disk.gists
    for name in ("notes.txt", ".safetensors", "x" * 64 + ".safetensors", "A" * 64 + ".safetensors"):
        (gists / name).write_text("mine")
    assert len(store.entries()) == 1
    assert store.verify()["checked"] == 1
    store.gc()
    assert len(list(gists.iterdir())) == 5


@pytest.mark.parametrize("loss", ["deleted", "garbage", "empty", "other version", "table dropped"])
def test_the_index_is_made_again(tmp_path: Path, pair: Make, loss: str) -> None:
    root = tmp_path / "store"
    with GistStore(root) as store:
        store.put(*pair(0), pinned=True)
        store.put(*pair(1), ttl=1000)
        store.put(None, pair(2)[1])
        before = {entry.id: entry for entry in store.entries()}
    index = root / "index.sqlite"
    if loss == "deleted":
        index.unlink()
    elif loss == "garbage":
        index.write_bytes(os.urandom(8192))
    elif loss == "empty":
        index.write_bytes(b"")
    else:
        connection = sqlite3.connect(index)
        connection.execute("PRAGMA user_version = 99")
        if loss == "table dropped":
            connection.execute("DROP TABLE gists")
        connection.close()
    with GistStore(root) as store:
        after = {entry.id: entry for entry in store.entries()}
        assert {id: replace(e, last_used=0) for id, e in after.items()} == {
            id: replace(e, last_used=0) for id, e in before.items()
        }
        assert store.get(pair(1)[0]) is not None


@pytest.mark.parametrize("loss", ["deleted", "garbage", "empty"])
def test_an_index_lost_under_open_stores_doubles_no_quota(
    tmp_path: Path, pair: Make, loss: str
) -> None:
    size = len(pair(0)[1].to_bytes()) + 300  # and what a store notes in it
    root, quota = tmp_path / "store", 6 * size
    ours = GistStore(root, max_bytes=quota)
    for number in range(4):
        ours.put(*pair(number))
    index = root / "index.sqlite"
    if loss == "deleted":
        index.unlink()
    else:
        index.write_bytes(b"" if loss == "empty" else os.urandom(8192))
    theirs = GistStore(root, max_bytes=quota)
    for number in range(4, 16):
        (ours, theirs)[number % 2].put(*pair(number))
    files = sum(path.stat().st_size for path in (root / "gists").iterdir())
    assert files <= quota
    for store in (ours, theirs):
        assert store.stats()["bytes"] == files
        assert holds(store.get(pair(15)[0]), 15)


def test_a_file_that_a_killed_writer_left_counts_for_the_quota(tmp_path: Path, pair: Make) -> None:
    with GistStore(tmp_path / "store") as store:
        store.put(*pair(0))
        store.put(*pair(1))
        with store._disk.index.transaction():
            store._disk.index.delete(pair(0)[0].id)
        size = max(path.stat().st_size for path in store._disk.gists.iterdir())
    with GistStore(tmp_path / "store", max_bytes=int(2.5 * size)) as store:
        assert store.stats()["entries"] == 2
        store.put(*pair(2))
        assert len(list(store._disk.gists.iterdir())) == 2


def test_a_gist_that_another_process_removed_is_not_removed_again(
    tmp_path: Path, pair: Make
) -> None:
    key, gist = pair(0)
    ours, theirs = GistStore(tmp_path), GistStore(tmp_path)
    ours.put(key, gist)
    assert ours.get(key) is not None  # in memory now
    assert theirs.remove(key.id)
    assert not ours.remove(key.id)


def test_a_file_that_cannot_be_looked_at_is_not_a_missing_one(
    tmp_path: Path, pair: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, gist = pair(0)
    store = GistStore(tmp_path)
    store.put(key, gist)

    def broken(path: Path) -> os.stat_result:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "lstat", broken)
    with pytest.raises(GistFileError, match=r"cannot be read: .*Input/output error"):
        store.find(key.id)


def test_a_store_that_was_read_only_is_written_once_it_can_be(
    tmp_path: Path, pair: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    GistStore(tmp_path / "store").put(*pair(0))

    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", read_only)
        store = GistStore(tmp_path / "store")
        assert holds(store.get(pair(0)[0]), 0)
        with pytest.raises(SaveError, match="cannot be written"):
            store.put(*pair(1))
    store.put(*pair(1))
    assert holds(GistStore(tmp_path / "store").get(pair(1)[0]), 1)
    assert store.stats()["entries"] == 2


OVERWRITTEN = """
import sys
from pathlib import Path
from gistkit.gist import Gist
from gistkit.gist import GistFile
from gistkit.store import GistStore

root, id, file = sys.argv[1:]
store = GistStore(root)
held = [store.load(id), Gist.from_file(GistFile.open(file)), Gist.load(file)]
for path in (Path(root, "gists", f"{id}.safetensors"), Path(file)):
    with path.open("r+b") as opened:
        opened.truncate(0)
for gist in held:
    assert all(bool((tensor == 7).all()) for tensor in gist.tensors.values())
print("alive")
"""


def test_a_file_that_is_overwritten_in_place_kills_no_reader(tmp_path: Path, pair: Make) -> None:
    key, gist = pair(7, size=4096)
    GistStore(tmp_path / "store").put(key, gist)
    copy = gist.save(tmp_path / "copy.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", OVERWRITTEN, str(tmp_path / "store"), key.id, str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_an_index_damaged_under_an_open_store(tmp_path: Path, pair: Make) -> None:
    store = GistStore(tmp_path / "store")
    for number in range(50):
        store.put(*pair(number))
    store.flush = None  # type: ignore[attr-defined]
    index = tmp_path / "store/index.sqlite"
    store._disk.index._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = index.stat().st_size
    with index.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    store._disk.index._connection.execute("PRAGMA cache_size = 0")
    store._disk.index._connection.execute("PRAGMA shrink_memory")
    other = GistStore(tmp_path / "store")  # its cache is cold
    other.put(*pair(99))
    assert len(other.entries()) == 51
    assert other.get(pair(7)[0]) is not None
    assert list((tmp_path / "store/quarantine").glob("index.*.sqlite"))
    store.put(*pair(100))  # to the index that was put aside, or a new one: the file counts
    assert other.get(pair(100)[0]) is not None
    assert len(other.entries()) == 52


def test_a_file_without_a_row_is_adopted(tmp_path: Path, pair: Make) -> None:
    """A writer killed between the rename and the commit."""
    store = GistStore(tmp_path / "store")
    store.put(*pair(0))
    store.put(*pair(1))
    with store._disk.index.transaction():
        store._disk.index.delete(pair(0)[0].id)
    assert store.get(pair(0)[0]) is not None
    assert store.find(pair(0)[0].id) is not None
    assert len(store.entries()) == 2
    assert store.stats()["entries"] == 2


def test_a_row_without_a_file_counts_for_nothing(tmp_path: Path, pair: Make) -> None:
    store = GistStore(tmp_path / "store")
    for number in range(3):
        store.put(*pair(number))
    file_of(store, pair(0)[0]).unlink()
    assert store.get(pair(0)[0]) is None
    assert store.find(pair(0)[0].id) is None
    assert len(store.entries()) == 2
    assert store.gc()["missing"] == 1
    assert store.stats()["entries"] == 2


def test_leftovers_of_killed_writers_go(store: GistStore, pair: Make) -> None:
    new = store._disk.new
    for name, age in (("old", 2 * LEFTOVER), ("young", 0.0)):
        (new / name).write_bytes(b"half a gi")
        os.utime(new / name, (time.time() - age,) * 2)
    assert store.gc()["leftovers"] == 1
    assert [path.name for path in new.iterdir()] == ["young"]


@pytest.mark.parametrize("step", ["fsync", "replace", "open", "write"])
def test_a_full_disk_loses_nothing(
    store: GistStore, pair: Make, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    (key, gist), (other, second) = pair(0), pair(1)
    store.put(key, gist)

    def full(*_: object, **__: object) -> None:
        raise FULL

    with monkeypatch.context() as patch:
        target = {
            "fsync": (os, "fsync"),
            "replace": (Path, "replace"),
            "open": (os, "open"),
            "write": (os, "fdopen"),
        }[step]
        patch.setattr(*target, full)
        with pytest.raises(SaveError, match=r"could not write .*: No space left on device; free"):
            store.put(key, replace(gist, tensors={n: t + 1 for n, t in gist.tensors.items()}))
        with pytest.raises(SaveError):
            store.put(other, second)
        model = tiny_gist_model()
        unsaved = store.get_or_compress(model, "Be brief.")
        assert store.get_or_compress(model, "Be brief.").tensors.keys() == unsaved.tensors.keys()
    stats = store.stats()
    assert (stats["unsaved"], stats["compressed"], stats["hits_memory"]) == (1, 1, 1)
    loaded = store.get(key)
    assert loaded is not None and all((t == 0).all() for t in loaded.tensors.values())
    assert store.get(other) is None
    assert list(store._disk.new.iterdir()) == []
    store.put(other, second)
    assert len(store.entries()) == 2
    store.pin(GistKey.of(model, "Be brief.").id, False)  # there is room again
    assert len(store.entries()) == 3


def test_an_index_without_room_stops_no_reader(
    store: GistStore, pair: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, gist = pair()
    store.put(key, gist)

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Index, "use", full)
        for _ in range(600):
            assert store.get(key) is not None
        with monkeypatch.context() as inner:
            inner.setattr(Index, "put", full)
            with pytest.raises(SaveError, match="database or disk is full"):
                store.put(*pair(1))
    assert store.stats()["hits"] == 600  # counted once there was room again


READER = """
import os
import sys
from functools import partial
sys.path.insert(0, sys.argv[2])
from tests.store.store_pairs import holds, make_pair
from gistkit.errors import GistkitError
from gistkit.store import GistStore

os.setuid(65534)
with GistStore(sys.argv[1]) as store:
    assert holds(store.get(make_pair(3)[0]), 3)
    assert len(store.entries()) == 1 and store.verify()["damaged"] == []
    assert store.stats()["entries"] == 1
    put, remove = partial(store.put, *make_pair(4)), partial(store.remove, make_pair(3)[0].id)
    for action in (put, remove, store.gc):
        try:
            action()
        except GistkitError as error:
            assert "cannot be written" in str(error), error
        else:
            raise AssertionError("it was written")
try:
    GistStore(sys.argv[1] + "/new/store")
except GistkitError as error:
    assert "could not write" in str(error)
else:
    raise AssertionError("it was made")
print("read")
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root's rights, so it needs them")
def test_a_folder_that_cannot_be_written_is_read(tmp_path: Path, pair: Make) -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        with GistStore(Path(name) / "store") as store:
            store.put(*pair(3))
        done = subprocess.run(
            [sys.executable, "-c", READER, f"{name}/store", str(Path(__file__).parent)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stdout == "read\n", done.stderr
