"""GistStore: what goes in comes out, under its own key only; what is told of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gistkit.errors import GistFileError, GistMismatchError, OptionError
from gistkit.files import write_new
from gistkit.gist import Gist, Provenance
from gistkit.store import Entry, GistStore
from gistkit.store import store as store_module
from tests.store.store_pairs import Clock, Make, same


def test_what_is_held_in_memory_is_what_the_folder_has(
    store: GistStore, pair: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, gist = pair(1)
    monkeypatch.setattr("gistkit.store.disk.DELAY", 1e9)  # however slow the machine is
    assert store.held(key) is None
    store.put(key, gist, ttl=1000)
    assert store.held(key) is None  # nobody has read it yet
    assert same(store.get(key), gist)
    assert same(store.held(key), gist)
    assert (store.stats()["hits_disk"], store.stats()["hits_memory"]) == (1, 1)
    monkeypatch.setattr("gistkit.store.disk.DELAY", -1.0)
    assert store.held(key) is None  # uses are to be written down
    monkeypatch.setattr("gistkit.store.disk.DELAY", 1e9)
    with GistStore(tmp_path / "store") as other:
        other.put(key, replace(gist, tensors={n: t + 1 for n, t in gist.tensors.items()}))
        assert store.held(key) is None
        assert store.get(key) is not None and store.held(key) is not None
        other.remove(key.id)
    assert store.held(key) is None


def test_what_goes_in_comes_out(store: GistStore, pair: Make, tmp_path: Path) -> None:
    for number, dtype in enumerate((torch.float32, torch.bfloat16, torch.float16)):
        key, gist = pair(number)
        gist = replace(gist, tensors={n: t.to(dtype) for n, t in gist.tensors.items()})
        assert store.get(key) is None
        assert store.put(key, gist) == key.id
        assert same(store.get(key), gist)  # from the file
        assert same(store.get(key), gist)  # from memory
        assert same(store.load(key.id), gist)
    store.close()
    with GistStore(tmp_path / "store", max_memory_bytes=0) as again:
        assert all(again.get(pair(n)[0]) is not None for n in range(3))


def test_every_part_of_a_key_counts(store: GistStore, pair: Make) -> None:
    key, gist = pair()
    store.put(key, gist)
    for other in (
        replace(key, model="0" * 64),
        replace(key, adapter="lora"),
        replace(key, tokenizer="0" * 64),
        replace(key, template="chat"),
        replace(key, num_tokens=3),
        replace(key, tokens=key.tokens[:-1]),
        replace(key, tokens=(*key.tokens[:-1], 0)),
    ):
        assert other.id != key.id
        assert store.get(other) is None


def test_a_collision_of_hashes_is_not_served(store: GistStore, pair: Make) -> None:
    """No two keys with one SHA-256 are known, so the hash of one is forged here."""
    key, gist = pair()
    store.put(key, gist)
    other = pair(1)[0]
    object.__setattr__(other, "id", key.id)
    for _ in range(2):  # from the file, from memory
        assert store.get(other) is None
        assert same(store.get(key), gist)


def test_a_file_under_another_name_is_not_served(store: GistStore, pair: Make) -> None:
    (one, gist), (other, _) = pair(1), pair(2)
    store.put(one, gist)
    files = store._disk
    files.path(other.id).write_bytes(files.path(one.id).read_bytes())
    assert store.get(other) is None
    assert same(store.get(one), gist)
    taken = store.put(None, gist)
    files.path(other.id).write_bytes(files.path(taken).read_bytes())
    with pytest.raises(GistFileError, match="something else than its name says"):
        store.load(other.id)
    assert store.stats()["quarantined"] == 2


def test_a_gist_must_be_its_keys(store: GistStore, pair: Make) -> None:
    key, gist = pair()
    (row,) = gist.provenance
    for other, what in (
        (Gist.stack([gist, gist]), "one by one, not 2"),
        (replace(gist, model="0" * 64), "another model"),
        (replace(gist, template="chat"), "another template"),
        (pair(k=3)[1], "another number of gist tokens"),
        (replace(gist, provenance=(replace(row, instruction_tokens=1),)), "instruction length"),
    ):
        with pytest.raises(GistMismatchError, match=what):
            store.put(key, other)
    with pytest.raises(GistMismatchError, match="one by one, not 2"):
        store.put(None, Gist.stack([gist, gist]))
    assert store.entries() == []


def test_gists_from_files_are_found_by_id_alone(store: GistStore, pair: Make) -> None:
    key, gist = pair()
    id = store.put(None, gist)
    assert id == store.put(None, gist) != key.id
    assert store.get(key) is None
    assert same(store.load(id), gist)
    measured = replace(gist.provenance[0], fidelity={"score": 0.75, "parts": {}})
    assert store.put(None, replace(gist, provenance=(measured,))) == id
    (entry,) = store.entries()
    assert (entry.keyed, entry.fidelity) == (False, 0.75)
    assert store.put(None, pair(1)[1]) != id


def test_an_entry_tells_everything(store: GistStore, pair: Make, clock: Clock) -> None:
    key, gist = pair()
    start = clock.now
    store.put(key, gist, pinned=True, ttl=60)
    entry = store.find(key.id)
    (row,) = gist.provenance
    assert entry == Entry(
        id=key.id,
        keyed=True,
        model=gist.model,
        template="decoder",
        num_tokens=2,
        num_bytes=store._disk.path(key.id).stat().st_size,
        instruction_length=len(key.tokens),
        instruction_sha256=row.instruction_sha256,
        created=pytest.approx(start, abs=1),
        last_used=pytest.approx(start, abs=1),
        expires=pytest.approx(start + 60, abs=1),
        pinned=True,
        fidelity=None,
    )
    assert store.entries() == [entry]
    assert entry.to_json()["id"] == key.id


def test_what_is_not_given_again_stays(store: GistStore, pair: Make, clock: Clock) -> None:
    key, gist = pair()
    store.put(key, gist, pinned=True, ttl=60)
    before = store.find(key.id)
    clock.now += 10
    scored = replace(gist.provenance[0], fidelity={"score": 0.5})
    store.put(key, replace(gist, provenance=(scored,)))
    after = store.find(key.id)
    assert before and after
    assert (after.pinned, after.expires, after.fidelity) == (True, before.expires, 0.5)
    loaded = store.get(key)
    assert loaded is not None and loaded.provenance[0].fidelity == {"score": 0.5}
    store.put(key, gist, pinned=False, ttl=5)
    after = store.find(key.id)
    assert (
        after and after.expires and (after.pinned, after.expires < clock.now + 6) == (False, True)
    )


def test_more_is_known_of_a_gist(store: GistStore, pair: Make, clock: Clock) -> None:
    key, gist = pair()
    store.put(key, gist, pinned=True, ttl=60)
    uploaded = store.put(None, gist)
    scored = replace(gist, provenance=(replace(gist.provenance[0], fidelity={"score": 0.5}),))
    for id, keyed, pinned in ((key.id, True, True), (uploaded, False, False)):
        before = store.find(id)
        store.update(id, scored)
        after = store.find(id)
        assert before and after and (after.keyed, after.pinned) == (keyed, pinned)
        assert (after.expires, after.fidelity) == (before.expires, 0.5)
    assert len(store.entries()) == 2
    with pytest.raises(GistMismatchError, match="not the gist"):
        store.update(key.id, pair(1)[1])
    clock.now += 61
    with pytest.raises(GistFileError, match="no gist"):
        store.update(key.id, scored)


def test_what_was_removed_is_not_brought_back(
    store: GistStore, pair: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even by who had read it before, and writes it again."""
    key, gist = pair()

    def late(path: Path, data: bytes) -> None:
        assert store.remove(key.id)
        write_new(path, data)

    for again in (lambda: store.pin(key.id), lambda: store.update(key.id, gist)):
        store.put(key, gist)
        with monkeypatch.context() as patch:
            patch.setattr("gistkit.store.disk.write_new", late)
            with pytest.raises(GistFileError, match="no gist"):
                again()
        assert store.get(key) is None
        assert store.entries() == list(store._disk.new.iterdir()) == []


@pytest.mark.parametrize("score", [None, "high", True, -1, 2, float("nan")])
def test_a_score_that_is_none_is_not_shown(store: GistStore, pair: Make, score: object) -> None:
    key, gist = pair()
    row = Provenance("0" * 64, len(key.tokens), {"score": score} if score is not None else None)
    store.put(key, replace(gist, provenance=(row,)))
    entry = store.find(key.id)
    assert entry is not None and entry.fidelity is None


def test_an_empty_place_is_not_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match="place is empty"):
        GistStore("")
    assert list(tmp_path.iterdir()) == []


def test_another_stores_changes_are_seen(tmp_path: Path, pair: Make) -> None:
    """Two stores of one folder, as in two processes: memory never outlives the file."""
    ours, theirs = GistStore(tmp_path / "store"), GistStore(tmp_path / "store")
    (key, gist), changed = pair(0), pair(0)[1]
    ours.put(key, gist)
    assert ours.get(key) is not None and theirs.get(key) is not None
    changed.tensors["layers.0.keys"].fill_(7)
    theirs.put(key, changed)
    assert same(ours.get(key), changed)
    theirs.pin(key.id)
    entry = ours.find(key.id)
    assert entry is not None and entry.pinned
    assert theirs.remove(key.id)
    assert ours.get(key) is None
    assert not ours.remove(key.id)


@pytest.mark.parametrize(
    "id", ["", "x", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n", "/" * 64]
)
def test_only_ids_become_paths(store: GistStore, id: str) -> None:
    for action in (store.load, store.find, store.remove, store.pin):
        with pytest.raises(OptionError, match="is no gist id"):
            action(id)


def test_what_is_not_there(store: GistStore) -> None:
    id = "0" * 64
    assert store.find(id) is None
    assert not store.remove(id)
    for action in (store.load, store.pin):
        with pytest.raises(GistFileError, match=f"no gist {id} in .*see gistkit store ls"):
            action(id)


def test_counts_are_kept(tmp_path: Path, pair: Make) -> None:
    with GistStore(tmp_path / "store") as store:
        store.get(pair(0)[0])
        store.put(*pair(0))
        store.get(pair(0)[0])
        store.get(pair(0)[0])
    with GistStore(tmp_path / "store") as store:
        stats = store.stats()
    assert {n: stats[n] for n in ("misses", "hits_disk", "hits_memory", "hits", "entries")} == {
        "misses": 1,
        "hits_disk": 1,
        "hits_memory": 1,
        "hits": 2,
        "entries": 1,
    }
    assert stats.keys() >= {"bytes", "evictions", "quarantined", "unsaved", "memory_bytes"}


def test_the_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GISTKIT_STORE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert GistStore.default_place() == str(tmp_path / "gistkit/gists")
    monkeypatch.setenv("GISTKIT_STORE", "s3://bucket")
    assert GistStore.default_place() == "s3://bucket"


def test_all_is_the_namespace() -> None:
    import gistkit.store

    assert set(gistkit.store.__all__) == {"Entry", "GistKey", "GistStore"}
    assert store_module.GistStore is GistStore
