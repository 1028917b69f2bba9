"""A server around the fake engine, and one with keys."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gistkit.store import GistStore
from gistkit.testing import tiny_gist_model
from tests.serving.fake_engine import FakeEngine
from tests.serving.http_running import Running, running


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeEngine]:
    with GistStore(tmp_path / "store") as store:
        yield FakeEngine(tiny_gist_model(), store)


@pytest.fixture
def server(fake: FakeEngine) -> Iterator[Running]:
    with running(fake) as found:
        yield found
