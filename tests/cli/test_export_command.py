"""`gistkit export` and `gistkit import`."""

import json
from pathlib import Path

import pytest

from gistkit.gist import Gist
from tests.cli.console import Run


@pytest.fixture
def kept(run: Run, decoder: Path, tmp_path: Path) -> Path:
    file = tmp_path / "kept.safetensors"
    ended = run(
        "compress", "--model-name-or-path", decoder, "--instruction", "Say it.", "--save", file,
        "--max-new-tokens", 1,
    )  # fmt: skip
    assert ended.status == 0, ended
    return file


@pytest.mark.parametrize("format", ["hf-cache", "peft", "vllm"])
def test_there_and_back(format: str, run: Run, decoder: Path, kept: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    ended = run(
        "export", kept, "--format", format, "-o", folder, "--model-name-or-path", decoder, "--json"
    )
    assert ended.status == 0, ended
    assert json.loads(ended.out)["folder"] == str(folder)
    facts = json.loads((folder / "gist.json").read_text())
    assert facts["base_model"] == str(decoder)

    assert run("import", folder, "--save", tmp_path / "back.safetensors").status == 0
    back, gist = Gist.load(tmp_path / "back.safetensors"), Gist.load(kept)
    assert back.to_bytes() == gist.to_bytes()
    assert "exists already" in run("import", folder, "--save", kept).error

    store = tmp_path / "store"
    ended = run("import", folder, "--store", store)
    assert (ended.status, ended.out.strip()) == (0, facts["id"])
    again = run(
        "export", facts["id"][:8], "--store", store, "--format", format, "-o", tmp_path / "again",
        "--model-name-or-path", decoder,
    )  # fmt: skip
    assert again.status == 0, again


def test_mistakes(run: Run, encoder_decoder: Path, kept: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "another model" in run("export", kept, "--format", "peft", "-o", out).error
    assert "onnx" in run("export", kept, "--format", "onnx", "-o", out).error
    missing = run("export", tmp_path / "none.safetensors", "--format", "peft", "-o", out)
    assert "no gist file" in missing.error
    assert "gist.json" in run("import", tmp_path).error
    twice = run("import", tmp_path, "--save", out, "--store", out)
    assert "--store" in twice.error
    file = tmp_path / "t5.safetensors"
    run(
        "compress", "--model-name-or-path", encoder_decoder, "--instruction", "Say it.",
        "--save", file, "--max-new-tokens", 1,
    )  # fmt: skip
    refused = run(
        "export", file, "--format", "peft", "-o", out, "--model-name-or-path", encoder_decoder
    )
    assert "T5" in refused.error
    assert not out.exists()
