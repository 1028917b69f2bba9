"""The run of one process that all others are compared with."""

from pathlib import Path

import pytest

from tests.distributed.launching import launch


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    launch(folder, "training.gradient_accumulation_steps=2")
    return folder
