"""The store's quota holds for what vLLM puts into it."""

from pathlib import Path

import pytest

from gistkit import GistModel
from gistkit.store import GistStore
from tests.integrations.engines import serving

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_gists_that_vllm_makes_stay_within_the_quota(
    folder: Path, model: GistModel, tmp_path: Path
) -> None:
    """The least used go."""
    (tmp_path / "model").symlink_to(folder / "model")
    with GistStore(tmp_path / "store") as probe:
        probe.get_or_compress(model, "Sing of 0.", num_gist_tokens=1)
        quota = 3 * probe.stats()["bytes"] + 500
    with serving(tmp_path, model, block_size=32, connector={"max_bytes": quota}) as served:
        made = [served.to_compress(f"Sing of {n}.", 1) for n in range(6)]
        for request, _ in made:
            served.answer([request])
        kept = [n for n, (_, key) in enumerate(made) if served.store.get(key) is not None]
        assert kept == [3, 4, 5]
        assert served.store.stats()["bytes"] <= quota
