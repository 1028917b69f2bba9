"""`gistkit check`: statuses, the file that keeps what was measured, mistakes."""

import json
from pathlib import Path

import pytest

from gistkit.fidelity import MIN_FIDELITY, fidelity_of, measure_fidelity
from gistkit.gist import Gist
from gistkit.model import GistModel
from gistkit.store import GistKey, GistStore
from tests.cli.console import Run

INSTRUCTION = "Everything costs nine coins. You are Nora."
INPUTS = ["Tom wants a cake", "A boat for Ada please"]


@pytest.fixture
def probes(tmp_path: Path) -> Path:
    path = tmp_path / "inputs.txt"
    path.write_text("\n".join([INPUTS[0], "", INPUTS[1]]) + "\n")
    return path


def test_status_says_whether_a_gist_is_safe(run: Run, probes: Path) -> None:
    ended = run("check", "--instruction", INSTRUCTION, "--probes", probes)
    assert (ended.status, ended.err) == (0, "")
    assert f"safe (at least {MIN_FIDELITY:g})" in ended.out
    ended = run("check", "--instruction", INSTRUCTION, "--probes", probes, "--min-fidelity", 1)
    assert (ended.status, ended.err) == (1, "")
    assert "NOT SAFE" in ended.out


def test_measures_as_the_library_does_and_keeps_it_in_the_file(
    run: Run, probes: Path, tmp_path: Path
) -> None:
    model = GistModel.from_pretrained("toy")
    gist = model.compress(INSTRUCTION, num_gist_tokens=2)
    file = gist.save(tmp_path / "shop.gist")
    assert "never measured" in run("check", "--gist", file).error
    ended = run(
        "check", "toy", "--instruction", INSTRUCTION, "--gist", file, "--probes", probes,
        "--json",
    )  # fmt: skip
    found = json.loads(ended.out)
    expected = measure_fidelity(model, INSTRUCTION, gist, probes=INPUTS)
    assert ended.status == 0 and found["safe"] is True
    assert found["gists"][0]["fidelity"] == expected.to_json()
    assert fidelity_of(Gist.load(file)) == expected
    again = json.loads(run("check", "--gist", file, "--json").out)
    assert again["gists"][0]["fidelity"] == expected.to_json()


def test_a_store_keeps_what_is_measured_of_its_gist(run: Run, probes: Path, tmp_path: Path) -> None:
    model = GistModel.from_pretrained("toy")
    arguments = ("check", "--instruction", INSTRUCTION, "--probes", probes, "--store", tmp_path)
    for given, k in (((), 4), (("--num-gist-tokens", 2), 2)):
        ended = run(*arguments, *given, "--json")
        assert (ended.status, ended.err) == (0, "")
        found = json.loads(ended.out)["gists"][0]
        with GistStore(tmp_path) as store:
            entry = store.find(GistKey.of(model, INSTRUCTION, k).id)
        assert entry is not None and entry.fidelity == found["fidelity"]["score"]
        assert entry.id[:12] in found["gist"]
    assert "--store" in run(*arguments, "--save", tmp_path / "new.gist").error


def test_saves_a_gist_with_what_was_measured(run: Run, probes: Path, tmp_path: Path) -> None:
    file = tmp_path / "new.gist"
    arguments = ("check", "--instruction", INSTRUCTION, "--probes", probes, "--save", file)
    assert run(*arguments).status == 0
    assert fidelity_of(Gist.load(file)) is not None
    assert "exists already" in run(*arguments).error


def test_help_names_the_default_threshold(run: Run) -> None:
    assert f"[default: {MIN_FIDELITY:g}]" in run("check", "--help").out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to check"),
        (("--instruction", " "), "is empty"),
        (("--instruction", "a", "--gist", "b", "--gist", "c"), "one instruction"),
        (("--instruction", "a", "--min-fidelity", "2"), "between 0 and 1"),
        (("--instruction", "a", "--probes", "no-such-file"), "could not read"),
        (("--gist", "no-such.gist"), "no gist file"),
        (("--gist", "a", "--probes", "b"), "does not go with"),
    ],
)
def test_mistakes_are_one_line(run: Run, arguments: tuple[str, ...], message: str) -> None:
    assert message in run("check", *arguments).error
