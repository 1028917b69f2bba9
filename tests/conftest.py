"""Every test runs offline, without the user's caches, and on one thread."""

import os
from pathlib import Path

import pytest

# Before torch or transformers are imported: they read these once. Child processes inherit them.
# One thread: the models are so small that handing work to a second thread costs more than it saves.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference tensors and real data; without them the test is reported as skipped."""
    folder = Path(os.environ.get("GISTING_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}; set GISTING_SHARED")
    return folder
