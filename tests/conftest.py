"""Every test runs offline, without the user's caches, on one thread, and leaves logging alone."""

import logging
import os
import sys
from collections.abc import Generator
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

LOGGERS = ("", "gistkit", "uvicorn", "py.warnings")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Put logging back after each test.

    `gistkit serve` and Hydra set it up for the process they think they have to themselves; what
    they leave would write to the captured standard error of a test that has ended. A hook and no
    fixture, so that fixtures of a whole module are inside too.
    """
    if (absl := sys.modules.get("absl.logging")) is not None:
        # Imported by a test, it holds that test's standard error; Hydra ends all handlers, and this
        # one closes what it holds: a file that pytest still needs.
        absl.get_absl_handler().python_handler.stream = sys.__stderr__
    before = []
    for name in LOGGERS:
        logger = logging.getLogger(name)
        before.append((logger, logger.handlers[:], logger.level, logger.propagate))
    try:
        return (yield)
    finally:
        logging.captureWarnings(False)
        for logger, handlers, level, propagate in before:
            logger.handlers = handlers
            logger.setLevel(level)
            logger.propagate = propagate


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Reference tensors and real data; without them the test is reported as skipped."""
    folder = Path(os.environ.get("GISTKIT_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}; set GISTKIT_SHARED")
    return folder
