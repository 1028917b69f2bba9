"""A saved model of random weights, for tests that start vLLM on it."""

import os
from pathlib import Path

import pytest

from gistkit import GistModel
from tests.integrations.engines import random_model

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `model`, and a store as soon as an engine runs."""
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="session")
def model(folder: Path) -> GistModel:
    return random_model(folder / "model")
