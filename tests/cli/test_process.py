"""`gistkit` as a process: quick to start, completed by shells, polite to pipes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gistkit.cli import main

BESIDE_PYTHON = Path(sys.executable).parent


def process(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gistkit", *arguments]
    return subprocess.run(command, text=True, capture_output=True, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["compress", "--help"], ["data", "build", "--help"], ["--version"]]
)
def test_help_imports_nothing_slow(arguments: list[str]) -> None:
    told = """
import sys
from gistkit.cli import main
status = main(sys.argv[1:])
slow = {"torch", "transformers", "rich", "numpy", "tokenizers", "hydra", "huggingface_hub"}
assert not slow & set(sys.modules), slow & set(sys.modules)
sys.exit(status)
"""
    ended = subprocess.run([sys.executable, "-c", told, *arguments], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout


def test_a_mistake_in_options_costs_no_import() -> None:
    ended = process("compress", env={**os.environ, "PYTHONPROFILEIMPORTTIME": "1"})
    assert ended.returncode == 2
    assert "gistkit.cli.compress" in ended.stderr
    assert "transformers" not in ended.stderr


def test_the_published_module_has_the_published_options() -> None:
    command = [sys.executable, "-m", "gistkit.compress"]
    ended = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert ended.returncode == 0
    for name in (
        "model-name-or-path", "instruction", "input", "num-gist-tokens", "cache-dir", "precision",
        "max-new-tokens", "base-llama-path",
    ):  # fmt: skip
        assert f"--{name} " in ended.stdout
    ended = subprocess.run([*command, "--num_gist_tokens", "0"], capture_output=True, text=True)
    assert ended.stderr == "gistkit: error: --num-gist-tokens must be at least 1, not 0\n"


def test_no_command_shows_the_help() -> None:
    assert process().stdout == process("--help").stdout != ""


def test_ctrl_c_before_anything_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "gistkit.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "gistkit.cli.app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    assert main(["--help"]) == 130


def test_a_reader_that_left_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "gistkit", "--help"], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_standard_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "gistkit", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert ended.returncode == 2
    assert ended.stderr.startswith("gistkit: error: ")
    assert "No space left on device" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["gistkit", "compr"], {"compress"}),
        (["gistkit", "compress", "--num"], {"--num-gist-tokens"}),
        (["gistkit", "compress", "--precision", "b"], {"bf16"}),
        (["gistkit", "data", "b"], {"build"}),
    ],
)
def test_bash_completes(words: list[str], offered: set[str]) -> None:
    script = f"""
eval "$(_GISTKIT_COMPLETE=source_bash gistkit)"
COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}
_gistkit_completion gistkit
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    path = f"{BESIDE_PYTHON}{os.pathsep}{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "-c", script], env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert set(ended.stdout.split()) == offered, ended
