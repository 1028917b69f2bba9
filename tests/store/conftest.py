"""Gists of a store, without a model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gistkit.store import GistStore
from tests.store.store_pairs import Clock, Pair, make_pair


@pytest.fixture(autouse=True)
def close_all(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests open stores freely; each lets go of its files in the end."""
    opened: list[GistStore] = []
    init = GistStore.__init__

    def recorded(self: GistStore, *given: Any, **options: Any) -> None:
        init(self, *given, **options)
        opened.append(self)

    monkeypatch.setattr(GistStore, "__init__", recorded)
    yield
    monkeypatch.undo()
    for store in opened:
        store.close()


@pytest.fixture
def pair() -> Callable[..., Pair]:
    return make_pair


@pytest.fixture
def store(tmp_path: Path) -> GistStore:
    return GistStore(tmp_path / "store")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.time", clock.time)
    return clock
