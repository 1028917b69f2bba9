"""The command line run in this process."""

import json
import warnings
from typing import Any

import pytest

from gistkit.cli import main
from tests.benchmark.benchmark_command import AsJson, Command


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """`gistkit benchmark ARGUMENTS`; returns status, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with warnings.catch_warnings():  # the command line silences them for its process
            status = main(["benchmark", *map(str, arguments)])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def as_json(command: Command) -> AsJson:
    """The JSON that a command prints; asserts that it succeeds."""

    def call(*arguments: object) -> Any:
        status, out, err = command(*arguments, "--json")
        assert status == 0, err
        return json.loads(out)

    return call
