"""`gistkit train` hands everything on."""

import sys
from types import ModuleType

import pytest

from tests.cli.console import Run


def test_train_passes_every_argument_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[list[str]] = []
    module = ModuleType("gistkit.train")
    module.main = taken.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gistkit.train", module)
    for arguments in (
        ["+experiment=debug", "training.gist.num_gist_tokens=2"],
        ["--help"],
        ["-m", "training.gist.condition=gist,pos_control", "--cfg", "job"],
        ["--num_gist_tokens", "2"],
        [],
    ):
        assert run("train", *arguments).status == 0
        assert taken.pop() == arguments
