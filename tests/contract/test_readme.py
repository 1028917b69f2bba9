"""README.md is true: its code prints what it says, its commands and links exist."""

import re
import shlex
from pathlib import Path

import pytest

from gistkit.cli import main
from gistkit.training.composing import check, parse_request, register_defaults

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for language, text in BLOCKS
    if not language
    for line in text.splitlines()
    if line.startswith(("gistkit ", "make "))
]


def commands(name: str) -> list[list[str]]:
    found = [words[1:] for words in COMMANDS if words[:2] == ["gistkit", name]]
    assert found
    return found


def test_the_code_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [text for language, text in BLOCKS if language == "python"]
    said = [line.removeprefix("# ") for line in code.splitlines() if line.startswith("# [")]
    exec(code, {})
    assert capsys.readouterr().out.splitlines() == said != []


@pytest.mark.parametrize("arguments", commands("compress"), ids=shlex.join)
def test_compress(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    assert "Output: Tom, one cake, nine coins, Nora" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", commands("train"), ids=shlex.join)
def test_every_job_composes(arguments: list[str]) -> None:
    register_defaults()
    check(parse_request(arguments[1:]))


@pytest.mark.parametrize("arguments", [*commands("data"), *commands("evaluate")], ids=shlex.join)
def test_options_are_there_though_files_are_not(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert re.search(r"no such (file|folder)|data/alpaca_plus: no ", told), told


def test_goals_of_make_are_there() -> None:
    goals = {words[1] for words in COMMANDS if words[0] == "make"}
    assert goals
    assert goals <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_links_lead_somewhere() -> None:
    linked = [link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link]
    assert linked
    assert [link for link in linked if not (ROOT / link).exists()] == []
