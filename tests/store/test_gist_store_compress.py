"""GistStore.get_or_compress: once for all who ask."""

import threading

import pytest

from gistkit.gist import Gist
from gistkit.store import GistKey, GistStore
from gistkit.testing import tiny_gist_model
from tests.store.store_pairs import same


def test_compressed_once_and_kept(store: GistStore, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_gist_model()
    gist = store.get_or_compress(model, "Answer in one word.", num_gist_tokens=2)
    assert same(gist, model.compress("Answer in one word.", num_gist_tokens=2))
    key = GistKey.of(model, "Answer in one word.", 2)
    assert same(store.get(key), gist)
    assert model.generate("Hi", store.get(key), max_new_tokens=4) == model.generate(
        "Hi", gist, max_new_tokens=4
    )
    monkeypatch.setattr(model, "compress", None)
    assert same(store.get_or_compress(model, "Answer in one word.", num_gist_tokens=2), gist)
    assert store.stats()["compressed"] == 1


def test_asked_many_times_at_once_compressed_once(
    store: GistStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_gist_model()
    compress, calls = model.compress, []
    started, go = threading.Barrier(9), threading.Event()

    def slow(instruction: str, **options: object) -> Gist:
        calls.append(instruction)
        assert go.wait(300)
        return compress(instruction, **options)

    monkeypatch.setattr(model, "compress", slow)
    found: list[Gist] = []

    def ask() -> None:
        started.wait(300)
        found.append(store.get_or_compress(model, "Be brief."))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    started.wait(300)
    go.set()
    for thread in threads:
        thread.join(300)
    assert calls == ["Be brief."]
    assert len(found) == 8
    assert all(same(gist, found[0]) for gist in found)


def test_an_error_reaches_all_who_wait_and_nobody_later(
    store: GistStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_gist_model()
    with monkeypatch.context() as patch:
        patch.setattr(model, "compress", lambda *_, **__: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                store.get_or_compress(model, "Be brief.")
    assert store.get_or_compress(model, "Be brief.").lengths == (1,)


def test_an_interrupted_compression_is_taken_over(
    store: GistStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_gist_model()
    compress, calls = model.compress, []
    begun, waiting = threading.Event(), threading.Event()

    def first_interrupted(instruction: str, **options: object) -> Gist:
        calls.append(instruction)
        if len(calls) == 1:
            begun.set()
            assert waiting.wait(300)
            raise KeyboardInterrupt
        return compress(instruction, **options)

    monkeypatch.setattr(model, "compress", first_interrupted)
    found: list[Gist] = []

    def follow() -> None:
        assert begun.wait(300)
        waiting.set()
        found.append(store.get_or_compress(model, "Be brief."))

    thread = threading.Thread(target=follow)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        store.get_or_compress(model, "Be brief.")
    thread.join(300)
    assert len(found) == 1
