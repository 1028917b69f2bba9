"""docs/export.md: its transformers example runs as written."""

import re
from pathlib import Path

import pytest

from gistkit.cli import main
from gistkit.model import GistModel

INSTRUCTION = "Everything costs nine coins. You are Nora."


def test_the_example_for_transformers(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (root / "docs/export.md").read_text()
    (example,) = [
        code
        for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        if "DynamicCache" in code
    ]
    monkeypatch.chdir(tmp_path)
    model = GistModel.from_pretrained()
    gist = model.compress(INSTRUCTION)
    gist.save("nora.safetensors")
    command = ["export", "nora.safetensors", "--format", "hf-cache", "--output", "nora-cache"]
    assert main(command) == 0
    capsys.readouterr()
    exec(compile(example, "docs/export.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == model.generate("Tom wants a cake", gist)
