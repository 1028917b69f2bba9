"""A tuned model, its base and their diff."""

from pathlib import Path

import pytest

from gistkit.paper.weight_diff import make_diff
from tests.paper.weights.stand_ins import (
    SMALL,
    make_base,
    make_tuned,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """raw, tuned and diff, in shards."""
    folder = tmp_path_factory.mktemp("made")
    make_base(folder / "raw")
    make_tuned(folder / "tuned", folder / "raw")
    make_diff(folder / "raw", folder / "tuned", folder / "diff", shard_bytes=SMALL)
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    for source in made.rglob("*"):
        target = tmp_path / source.relative_to(made)
        if source.is_file():
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(source.read_bytes())
    return tmp_path
