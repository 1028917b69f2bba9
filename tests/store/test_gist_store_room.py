"""GistStore: time to live, quotas, pins, and what goes first."""

from pathlib import Path

import pytest

from gistkit.errors import GistFileError, OptionError, SaveError
from gistkit.store import GistStore
from tests.store.store_pairs import Clock, Make


def test_time_passes(store: GistStore, pair: Make, clock: Clock, tmp_path: Path) -> None:
    (key, gist), (other, second) = pair(0), pair(1)
    store.put(key, gist, ttl=10, pinned=True)
    store.put(other, second)
    assert store.get(key) is not None
    clock.now += 11
    assert store.get(key) is None  # memory forgets as well
    with pytest.raises(GistFileError, match="no gist"):
        store.load(key.id)
    assert store.find(key.id) is None
    assert [entry.id for entry in store.entries()] == [other.id]
    assert store.gc()["expired"] == 1
    assert not store._disk.path(key.id).exists()
    with GistStore(tmp_path / "short", ttl=5) as short:
        short.put(key, gist)
        short.put(other, second, ttl=50)
        clock.now += 6
        assert short.get(key) is None
        assert short.get(other) is not None


@pytest.mark.parametrize("ttl", [0, -1, float("inf"), float("nan")])
def test_times_that_mean_nothing(store: GistStore, pair: Make, ttl: float, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="`ttl` must be above 0"):
        store.put(*pair(), ttl=ttl)
    with pytest.raises(OptionError, match="`ttl` must be above 0"):
        GistStore(tmp_path / "x", ttl=ttl)
    with pytest.raises(OptionError, match="`max_bytes` must be 0 or more"):
        GistStore(tmp_path / "x", max_bytes=-1)
    assert not (tmp_path / "x").exists()


def test_the_least_recently_used_go(tmp_path: Path, pair: Make, clock: Clock) -> None:
    with GistStore(tmp_path / "probe") as probe:
        probe.put(*pair())
        size = probe.stats()["bytes"]
    store = GistStore(tmp_path / "small", max_bytes=int(3.5 * size), max_memory_bytes=0)
    keys = [pair(n)[0] for n in range(6)]
    store.put(*pair(0), pinned=True)
    store.put(*pair(1))
    store.put(*pair(2))
    assert store.get(keys[1]) is not None  # now 2 is the oldest
    store.put(*pair(3))
    assert [store.get(key) is not None for key in keys] == [True, True, False, True, False, False]
    store.put(*pair(4))
    store.put(*pair(5))
    there = {entry.id for entry in store.entries()}
    assert there == {keys[0].id, keys[4].id, keys[5].id}
    stats = store.stats()
    assert (stats["evictions"], stats["entries"], stats["pinned"]) == (3, 3, 1)
    assert stats["bytes"] <= 3.5 * size
    assert {p.stem for p in (tmp_path / "small/gists").iterdir()} == there


def test_what_expired_goes_first(tmp_path: Path, pair: Make, clock: Clock) -> None:
    with GistStore(tmp_path / "probe") as probe:
        probe.put(*pair())
        size = probe.stats()["bytes"]
    store = GistStore(tmp_path / "small", max_bytes=int(2.5 * size))
    store.put(*pair(0))
    store.put(*pair(1), ttl=1, pinned=True)
    clock.now += 2
    store.put(*pair(2))
    assert {entry.id for entry in store.entries()} == {pair(0)[0].id, pair(2)[0].id}


def test_pins_are_kept_and_fill_the_quota(tmp_path: Path, pair: Make) -> None:
    with GistStore(tmp_path / "probe") as probe:
        probe.put(*pair())
        size = probe.stats()["bytes"]
    store = GistStore(tmp_path / "small", max_bytes=int(2.5 * size))
    store.put(*pair(0), pinned=True)
    store.put(*pair(1))
    store.pin(pair(1)[0].id)
    with pytest.raises(
        SaveError, match=r"does not fit .* of them pinned; raise the store's quota or unpin"
    ):
        store.put(*pair(2))
    assert len(store.entries()) == 2
    assert list((tmp_path / "small/new").iterdir()) == []
    store.put(*pair(1))  # the same again takes no more room
    store.pin(pair(0)[0].id, False)
    store.put(*pair(2))
    assert {entry.id for entry in store.entries()} == {pair(1)[0].id, pair(2)[0].id}
    with pytest.raises(SaveError, match="does not fit"):
        GistStore(tmp_path / "tiny", max_bytes=10).put(*pair())


def test_a_smaller_quota_holds_from_the_next_collection(tmp_path: Path, pair: Make) -> None:
    with GistStore(tmp_path / "store") as store:
        for number in range(4):
            store.put(*pair(number))
        # Files differ by a few bytes, with the digits of the time in them.
        quota = 2 * max(entry.num_bytes for entry in store.entries())
    with GistStore(tmp_path / "store", max_bytes=quota) as store:
        assert store.gc()["evicted"] == 2
        assert store.stats()["bytes"] <= quota


def test_memory_is_bounded(tmp_path: Path, pair: Make) -> None:
    size = pair()[1].num_bytes
    store = GistStore(tmp_path / "store", max_memory_bytes=2 * size)
    for number in range(4):
        store.put(*pair(number))
        store.get(pair(number)[0])
    assert (store.stats()["memory_entries"], store.stats()["memory_bytes"]) == (2, 2 * size)
    hits = store.stats()["hits_memory"]
    store.get(pair(3)[0])
    store.get(pair(0)[0])
    assert store.stats()["hits_memory"] == hits + 1
    store.remove(pair(0)[0].id)
    assert store.stats()["memory_bytes"] == size
    none = GistStore(tmp_path / "store", max_memory_bytes=0)
    none.get(pair(3)[0])
    assert none.stats()["memory_entries"] == 0
