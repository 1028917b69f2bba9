"""`gistkit evaluate MODEL`: outputs, metrics, conditions side by side; stopped and resumed."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from gistkit.data.examples import write_examples
from gistkit.prompts import Example
from gistkit.resumable import Journal
from tests.cli.console import Run

EXAMPLES = [
    Example("Answer in one word.", "Capital of France?", "Paris"),
    Example("Say it twice, slowly.", "", "it it"),
    Example("Answer in one word.", "A rather longer question, is it not?", "yes"),
    Example("Count.", "1 2", "3. Then 4."),
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with the splits seen and human."""
    folder = tmp_path / "data"
    write_examples(folder / "validation_seen.jsonl", EXAMPLES)
    write_examples(folder / "alpaca_plus_validation_human.json", EXAMPLES[:2])
    return folder


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_model_on_a_folder(run: Run, decoder: Path, data: Path, tmp_path: Path) -> None:
    """Both splits: their outputs score alone as the metrics say."""
    out = tmp_path / "out"
    ended = run("evaluate", decoder, "--data", data, "--out", out, "--max-new-tokens", 4, "--json")
    report = json.loads(ended.out)
    assert json.loads((out / "metrics-0.json").read_text()) == report
    assert [score["split"] for score in report["scores"]] == ["validation_seen", "validation_human"]
    assert report["config"]["max_new_tokens"] == 4
    assert report["scores"][0]["perplexity"] > 1
    assert sorted(path.name for path in out.iterdir()) == [
        "metrics-0.json",
        "outputs-0-validation_human.csv",
        "outputs-0-validation_seen.csv",
    ]
    found = rows(out / "outputs-0-validation_seen.csv")
    assert sorted(row["y_true"] for row in found) == ["3.\nThen 4.", "Paris", "it it", "yes"]
    assert all("<GIST><GIST>\n" in row["x"] for row in found)
    path = out / "outputs-0-validation_seen.csv"
    alone = json.loads(run("evaluate", "--outputs", path, "--json").out)
    for name in ("rouge1", "rougeLsum", "exact_match", "words", "intervals"):
        assert alone[name] == report["scores"][0][name]
    assert (
        "exists already; choose another --out"
        in run("evaluate", decoder, "--data", data, "--out", out).error
    )


def test_every_condition_side_by_side(run: Run, decoder: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("--split", "seen", "--condition", "all", "--max-new-tokens", 3, "--out", out)
    ended = run("evaluate", decoder, "--data", data, *arguments)
    for words in ("pos_control-2", "gist-2", "gist-4", "neg_control-2", "paired", "perplexity"):
        assert words in ended.out
    report = json.loads((out / "metrics-0.json").read_text())
    cases = [(score["condition"], score["num_gist_tokens"]) for score in report["scores"]]
    assert cases == [("pos_control", 2), ("gist", 2), ("gist", 4), ("neg_control", 2)]
    assert [pair["a"] for pair in report["paired"]] == ["gist-2", "gist-4", "neg_control-2"]
    pair, scores = report["paired"][0], report["scores"]
    assert pair["rougeL"]["difference"] == pytest.approx(scores[1]["rougeL"] - scores[0]["rougeL"])
    outputs = [out / case / "outputs-0-validation_seen.csv" for case in ("gist-4", "pos_control-2")]
    files = json.loads(run("evaluate", "--outputs", *outputs, "--json").out)
    again = {name: files["paired"][0][name] for name in ("rouge1", "rougeL", "exact_match")}
    assert again == {name: report["paired"][1][name] for name in again}


@pytest.mark.parametrize(("folder", "k"), [("decoder", 4), ("encoder_decoder", 1)])
def test_the_mask_gives_what_the_cache_gives(
    run: Run, request: pytest.FixtureRequest, folder: str, k: int, data: Path, tmp_path: Path
) -> None:
    found = []
    for path in ("cache", "mask"):
        arguments = (
            "--split",
            "human",
            "--condition",
            "pos_control",
            "-k",
            k,
            "--max-new-tokens",
            6,
        )
        where = ("--data", data, "--out", tmp_path / path, "--path", path)
        run("evaluate", request.getfixturevalue(folder), *where, *arguments)
        found.append(rows(tmp_path / path / "outputs-0-validation_human.csv"))
    assert found[0] == found[1]


def stop_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> Callable[[], None]:
    """Ctrl-C once so many batches are saved; returns what undoes it."""
    append = Journal.append
    left = [batches]

    def stopping(self: Journal, *entries: Mapping[str, Any]) -> None:
        append(self, *entries)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "append", stopping)
    return lambda: monkeypatch.setattr(Journal, "append", append)


def test_ctrl_c_and_resuming(
    run: Run, decoder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second condition: saved answers are not sought again, and all ends equal."""
    common = ("evaluate", decoder, "--data", data, "--split", "seen", "--condition", "all")
    common = (*common, "-k", 2, "--max-new-tokens", 3, "--batch-size", 2)
    whole = run(*common, "--out", tmp_path / "whole")
    out = tmp_path / "out"
    undo = stop_after(monkeypatch, 3)
    ended = run(*common, "--out", out)
    assert ended.status == 130
    assert "6 of 12 answers are saved" in ended.err
    undo()
    partial = out / "gist-2" / "outputs-0-validation_seen.csv.partial"
    with partial.open("a") as file:
        file.write('{"row": 0, "ans')  # cut off by a full disk
    refused = run(*common, "--out", out, "--max-new-tokens", 4).error
    assert "max_new_tokens was 3, not 4" in refused
    answered: list[Mapping[str, Any]] = []
    append = Journal.append
    monkeypatch.setattr(Journal, "append", lambda j, *e: (answered.extend(e), append(j, *e))[1])
    again = run(*common, "--out", out)
    assert len(answered) == 6
    assert again.out == whole.out
    assert not list(out.rglob("*.partial"))
    for case in ("pos_control-2", "gist-2", "neg_control-2"):
        name = f"{case}/outputs-0-validation_seen.csv"
        assert rows(out / name) == rows(tmp_path / "whole" / name)


def test_one_file_its_step_and_its_order(
    run: Run, decoder: Path, data: Path, tmp_path: Path
) -> None:
    """A checkpoint's step is in the names; a cut is a cut of the shuffled split."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in decoder.iterdir():
        (copy / file.name).symlink_to(file)
    (copy / "trainer_state.json").write_text('{"global_step": 7}')
    path = data / "validation_seen.jsonl"
    arguments = ("--data", path, "--max-samples", 2, "--max-new-tokens", 2, "--out", tmp_path / "o")
    assert run("evaluate", copy, *arguments).status == 0
    found = rows(tmp_path / "o" / "outputs-7-validation_seen.csv")
    # numpy.random.default_rng(42).permutation(4) begins with 3, 2
    assert [row["y_true"] for row in found] == ["3.\nThen 4.", "yes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--data", "DATA", "-k", 3],
            "--num-gist-tokens 3: this model was trained for 2, 4 gist tokens",
        ),
        (["--data", "DATA", "-k", 0], "at least 1, not 0"),
        (["--data", "DATA", "--condition", "gits"], "is not one of"),
        (["--data", "DATA", "--path", "magic"], "is not one of"),
        (["--data", "DATA", "--split", "unseen"], "no alpaca_plus_validation_unseen"),
        (["--data", "DATA", "--split", "sen"], "no split 'validation_sen'"),
        (["--data", "DATA/validation_seen.jsonl", "--split", "a", "--split", "b"], "one split"),
        (["--data", "tasks", "--split", "human"], "no split validation_human"),
        (["--data", "nowhere.json"], "no such file"),
        (["--data", "."], "no alpaca_plus_validation_seen"),
        (["--data", "DATA", "--max-samples", 0], "--max-samples must be at least 1"),
        (["--data", "DATA", "--batch-size", 0], "--batch-size must be at least 1"),
        (["another", "--data", "DATA"], "give one MODEL with --data"),
        ([], "give one MODEL with --data PATH, or CSV files with --outputs"),
    ],
)
def test_mistakes(
    run: Run, decoder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[object], message: str,
) -> None:  # fmt: skip
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    given = [str(argument).replace("DATA", str(data)) for argument in arguments]
    assert message in run("evaluate", decoder, *given).error


def test_outputs_of_another_run_are_safe(
    run: Run, decoder: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "outputs-0-validation_human.csv").write_text("mine")
    arguments = ("evaluate", decoder, "--data", data, "--split", "human", "--out", out)
    assert "exists already" in run(*arguments, "--max-new-tokens", 2).error
    assert (out / "outputs-0-validation_human.csv").read_text() == "mine"
    assert run(*arguments, "--max-new-tokens", 2, "--force").status == 0
    assert len(rows(out / "outputs-0-validation_human.csv")) == 2
