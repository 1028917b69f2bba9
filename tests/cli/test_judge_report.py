"""`gistkit judge report`: the published verdicts, counted; exact intervals; agreement."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from gistkit.evaluation.judge.pairs import questions, read_pairs
from tests.cli.console import Run


def published(shared: Path) -> list[Path]:
    files = sorted((shared / "data" / "reference_results" / "chatgpt").glob("*.json.gz"))
    assert len(files) >= 24
    return files


def table(shared: Path) -> dict[tuple[str, str], list[str]]:
    """The table of tallies that was made from the published files by other means."""
    rows = {}
    for line in (shared / "spec" / "measured.md").read_text(encoding="utf-8").splitlines():
        if re.match(r"\s*(LLaMA|FLAN-T5)-\w+-\d+ +(human|seen|unseen) ", line):
            model, split, *rest = line.split()
            rows[model, split] = rest
    assert len(rows) == 30
    return rows


def test_published_tallies(run: Run, shared: Path) -> None:
    """Every number of the table, file by file; stored scores that differ are flagged."""
    files, expected = published(shared), table(shared)
    ended = run("judge", "report", *files, "--json")
    for one in json.loads(ended.out)["files"]:
        split = re.search(r"validation_([a-z]+)", one["file"])
        assert split is not None
        n, wins, ties, losses, rate, a, b, match, _, failures, first, second, cost = expected[
            one["a"], split[1]
        ]
        counts = [one[name]["count"] for name in ("wins", "ties", "losses")]
        assert [one["rows"], *counts] == [int(n), int(wins), int(ties), int(losses)]
        assert one["win_rate"] == pytest.approx(float(rate), abs=0.0051)
        assert one["stored"] == [float(a), float(b)]
        assert one["stored_differs"] is (match == "False")
        assert one["failures"] == int(failures)
        assert [one["position"]["first"], one["position"]["second"]] == [int(first), int(second)]
        assert one["estimated_cost"] == pytest.approx(float(cost), abs=0.0006)
    shown = run("judge", "report", *files).out
    assert "115.5 ≠ 114.5" in shown
    assert "stored scores 115.5 : 136.5, its verdicts give 114.5 : 137.5" in shown
    assert shown.count("stored scores") == sum(
        expected[file.name.split("-vs-")[0].removeprefix("chatgpt-"), split][7] == "False"
        for file in files
        for split in re.findall(r"validation_([a-z]+)", file.name)
    )


def test_why_stored_scores_differ(shared: Path) -> None:
    """Each answer that its authors read by hand and found a winner in moved a point, not half."""
    for file in published(shared):
        with gzip.open(file, "rt", encoding="utf-8") as stream:
            content = json.load(stream)
        points = {"a": 1.0, "tie": 0.5, "b": 0.0}
        choices = [(one["choice"].lower(), one["reason"]) for one in content["results"]]
        mended = [choice for choice, reason in choices if "(FIXED JSON PARSE)" in reason]
        tally = sum(points[choice] for choice, _ in choices)
        moved = (mended.count("a") - mended.count("b")) / 2
        assert content["scores"][content["names"]["a"]] == tally + moved


def test_our_pairs_and_orders_are_the_published(shared: Path) -> None:
    """Prompts, answers and orders of the published files, from the published outputs."""
    results = shared / "data" / "reference_results"
    for model, step, differ in (("FLAN-T5", 16000, 0), ("LLaMA", 3000, 0)):
        names = (f"{model}-gist-2", f"{model}-pos_control-1")
        tail = f"validation_human-{step}"
        files = [
            results / "model_outputs" / name / f"outputs-{step}-validation_human.csv.gz"
            for name in names
        ]
        path = results / "chatgpt" / f"chatgpt-{names[0]}-vs-{names[1]}-{tail}.json.gz"
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            theirs = json.load(stream)["results"]
        ours = list(questions(read_pairs(files[0], files[1], names)))
        assert len(ours) == len(theirs)
        assert differ == sum(
            (one.pair.x, one.pair.a, one.pair.b, one.swapped)
            != (two["x"], two[names[0]], two[names[1]], two["swapped"])
            for one, two in zip(ours, theirs, strict=True)
        )


def write(path: Path, choices: str, **more: Any) -> Path:
    """A published file: a letter a row, "t" for a tie, "?" for one that was not read."""
    words = {"t": "tie", "?": "tie", "T": "Tie", "C": "C"}
    results = [
        {
            "reason": "Could not parse JSON: oh" if letter == "?" else "r",
            "choice": words.get(letter, letter),
            "swapped": letter.islower(),
            "x": f"q{row}",
            "one": "1",
            "two": "2",
        }
        for row, letter in enumerate(choices)
    ]
    names = more.pop("names", {"a": "one", "b": "two"})
    content = {"names": names, "scores": {}, "results": results, "estimated_cost": 0.1, **more}
    path.write_text(json.dumps(content))
    return path


def report(run: Run, *files: Path) -> Any:
    return json.loads(run("judge", "report", *files, "--json").out)


def test_letters_of_any_case_and_what_was_not_read(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", "AaAbtT?C", scores={"one": 5.0, "two": 3.0})
    (found,) = report(run, file)["files"]
    assert [found[name]["count"] for name in ("wins", "ties", "losses")] == [3, 2, 1]
    assert (found["rows"], found["failures"]) == (6, 2)
    assert (found["points"], found["points_as_published"]) == ([4, 2], [5, 3])
    assert found["stored_differs"] is False  # it counts them as ties
    assert (
        "counted as ties, as published: 5 : 3 instead of 4 : 2" in run("judge", "report", file).out
    )


def test_agreement_between_judges(run: Run, tmp_path: Path) -> None:
    one = write(tmp_path / "a.json", "A" * 25 + "B" * 25)
    other = write(tmp_path / "b.json", "A" * 20 + "B" * 5 + "A" * 10 + "B" * 15)
    turned = write(tmp_path / "c.json", "B" * 25 + "A" * 25, names={"a": "two", "b": "one"})
    (pair, same, _) = report(run, one, other, turned)["agreement"]
    assert (pair["rows"], pair["agreed"]["count"]) == (50, 35)
    assert pair["kappa"] == pytest.approx(0.4)
    assert same["kappa"] == 1
    assert "0.400 [" in run("judge", "report", one, other).out


def test_other_pairs_are_not_compared(run: Run, tmp_path: Path) -> None:
    one = write(tmp_path / "a.json", "AB")
    content = json.loads(one.read_text())
    for result in content["results"]:
        result["one"] = "another answer"
    (tmp_path / "b.json").write_text(json.dumps(content))
    assert report(run, one, tmp_path / "b.json")["agreement"] == []


def test_no_rows(run: Run, tmp_path: Path) -> None:
    (found,) = report(run, write(tmp_path / "a.json", ""))["files"]
    assert (found["rows"], found["wins"]["percent"]) == (0, None)
    assert run("judge", "report", tmp_path / "a.json").status == 0


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"names": {"a": "x"}}', "null", '{"names": 3, "results": []}']
)
def test_what_is_no_file_of_verdicts(run: Run, tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    assert f"{path}: " in run("judge", "report", path).error


@pytest.mark.parametrize(
    "change",
    [
        {"usage": 3},
        {"usage": {"requests": 1}},
        {"usage": {"requests": "1", "prompt_tokens": 1, "completion_tokens": 1}},
        {"estimated_cost": "free"},
        {"estimated_cost": float("nan")},
        {"judge": ["m"]},
        {"scores": {"one": float("inf"), "two": 0}},
        {"failures": [3]},
        {"names": {"a": "one\ud800", "b": "two"}},
        {"more": "\ud800"},
    ],
)
def test_results_that_cannot_be_told(run: Run, tmp_path: Path, change: dict[str, Any]) -> None:
    path = write(tmp_path / "a.json", "AB")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for more in ((), ("--json",)):
        assert "no file of verdicts" in run("judge", "report", path, *more).error


def test_results_with_missing_parts(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", "A")
    for name in ("reason", "choice", "swapped", "x", "one"):
        content = json.loads(path.read_text())
        del content["results"][0][name]
        (tmp_path / "b.json").write_text(json.dumps(content))
        assert "no file of verdicts" in run("judge", "report", tmp_path / "b.json").error
