"""A tiny model on disk, and the command line run in this process."""

import warnings
from pathlib import Path

import pytest

from gistkit.cli import main
from gistkit.testing import tiny_gist_model
from tests.cli.console import Ended, Run


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`gistkit ARGUMENTS` in this process."""

    def call(*arguments: object) -> Ended:
        with warnings.catch_warnings():  # the command line silences them for its process
            status = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Ended(status, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama trained (so it says) for 2 and 4 gist tokens, with 512 positions."""
    folder = tmp_path_factory.mktemp("decoder")
    return tiny_gist_model("llama", num_gist_tokens=(2, 4)).save_pretrained(folder)


@pytest.fixture(scope="session")
def encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5."""
    folder = tmp_path_factory.mktemp("t5")
    return tiny_gist_model("t5", num_gist_tokens=1).save_pretrained(folder)
