"""`gistkit evaluate --outputs`: published outputs get their published scores, without a model."""

import csv
import gzip
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cli.console import Run

KINDS = ["rouge1", "rouge2", "rougeL", "rougeLsum"]


def write(path: Path, rows: Sequence[tuple[str, str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("x", "y_pred", "y_true"), *rows])
    return path


def published(results: Path) -> list[tuple[Path, float]]:
    """Files of outputs that are there, with their published ROUGE-L."""
    with (results / "rouge.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for row in rows:
        folder = "{model}-{condition}-{num_gist_tokens}".format(**row)
        name = "outputs-{steps}-validation_{split}.csv.gz".format(**row)
        path = results / "model_outputs" / folder / name
        if path.is_file():
            found.append((path, float(row["value"])))
    return found


def by_library(path: Path) -> dict[str, float]:
    """Mean scores of a file by rouge_score alone."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(KINDS, use_stemmer=True)
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    scores = [scorer.score(row["y_true"], row["y_pred"]) for row in rows]
    return {kind: 100 * sum(s[kind].fmeasure for s in scores) / len(scores) for kind in KINDS}


def test_published_rouge_is_reproduced(run: Run, shared: Path) -> None:
    """The human split of two models; `test_all_published_rouge` takes every file."""
    pairs = published(shared / "data" / "reference_results")
    human = [pair for pair in pairs if "human" in pair[0].name]
    chosen = [pair for pair in human if pair[0].parent.name.endswith("-gist-1")]
    assert len(chosen) == 2
    for path, value in chosen:
        found = json.loads(run("evaluate", "--outputs", path, "--json").out)
        assert found["rougeL"] == pytest.approx(value, abs=0.2)
    assert {kind: found[kind] for kind in KINDS} == pytest.approx(by_library(path), abs=0.01)


@pytest.mark.slow
def test_all_published_rouge(run: Run, shared: Path) -> None:
    pairs = published(shared / "data" / "reference_results")
    assert len(pairs) >= 30
    for path, value in pairs:
        found = json.loads(run("evaluate", "--outputs", path, "--json").out)
        assert found["rougeL"] == pytest.approx(value, abs=0.2)
        assert {kind: found[kind] for kind in KINDS} == pytest.approx(by_library(path), abs=0.01)


def test_one_file(run: Run, tmp_path: Path) -> None:
    """A right answer, half of one, and nothing at all, which counts as 0 and is never NaN."""
    rows = [("p", " Paris ⁇", "Paris"), ("q", "a b", "a c"), ("r", "", "x"), ("s", "nan", "y")]
    path = write(tmp_path / "a.csv", rows)
    ended = run("evaluate", "--outputs", path, "--json")
    found = json.loads(ended.out)
    assert (found["rouge1"], found["exact_match"]) == (37.5, 25.0)
    assert (found["rows"], found["words"]) == (4, 1.0)
    low, high = found["intervals"]["rouge1"]
    assert 0 <= low < 37.5 < high <= 100
    assert run("evaluate", "--outputs", path, "--json").out == ended.out


def test_lines_are_sentences(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [("p", "Dogs bark.\nCats meow.", "Cats meow.\nDogs bark.")])
    found = json.loads(run("evaluate", "--outputs", path, "--json").out)
    assert (found["rougeL"], found["rougeLsum"]) == (50, 100)


def test_the_paired_difference(run: Run, tmp_path: Path) -> None:
    """Always a third apart, whatever the row: an interval without width."""
    references = ["a b", "a b c d", "e f"]
    half = [(f"I: {y} <GIST><GIST>", y[: len(y) // 2], y) for y in references]
    whole = [(f"I: {y} <GIST>", y, y) for y in references]
    better = write(tmp_path / "whole.csv", whole)
    worse = write(tmp_path / "half.csv", half)
    found = json.loads(run("evaluate", "--outputs", worse, better, "--json").out)
    assert [file["rows"] for file in found["files"]] == [3, 3]
    (pair,) = found["paired"]
    assert (pair["a"], pair["b"]) == (str(worse), str(better))
    assert pair["exact_match"] == {"difference": -100, "interval": [-100, -100]}
    first, second = (file["rouge1"] for file in found["files"])
    assert pair["rouge1"]["difference"] == pytest.approx(first - second)
    low, high = pair["rouge1"]["interval"]
    assert low == pytest.approx(high) == pytest.approx(-100 / 3)


def test_rows_are_matched_whatever_their_gist_and_order(run: Run, tmp_path: Path) -> None:
    a = [("I: x <GIST> <GIST>  In: 1", "a", "a"), ("I: y <GIST>\nIn: 2 and", "b", "c")]
    b = [("I: x\n<GIST>\nIn: 1", "a", "a"), ("I: y <GIST> In: 2 and more", "c", "c")]
    left, right = write(tmp_path / "a.csv", a), write(tmp_path / "b.csv", b)
    (pair,) = json.loads(run("evaluate", "--outputs", left, right, "--json").out)["paired"]
    assert pair["exact_match"]["difference"] == -50
    a[1] = ("I: y <GIST> In: 2 and more", "b", "c")
    write(left, a[::-1])
    (pair,) = json.loads(run("evaluate", "--outputs", left, right, "--json").out)["paired"]
    assert pair["exact_match"]["difference"] == -50


def test_several_files_as_a_table(run: Run, tmp_path: Path) -> None:
    paths = []
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        paths.append(write(tmp_path / name / "outputs.csv", [("x", name, "two")]))
    ended = run("evaluate", "--outputs", *paths)
    assert ended.status == 0
    for words in ("one - three", "two - three", "100.00", "rougeLsum", "rows"):
        assert words in ended.out
    write(paths[0], [("y", "a", "b"), ("z", "a", "b")])
    assert "1 rows" in run("evaluate", "--outputs", *paths).error
    assert (
        json.loads(run("evaluate", "--unpaired", "--json", "--outputs", *paths).out)["paired"] == []
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column x or y_pred or y_true"),
        (b"x,y_true\n1,2\n", "no column y_pred; files of outputs have the columns x,y_pred,y_true"),
        (b"x,y_pred,y_true\n", "holds no rows"),
        (b"x,y_pred,y_true\n1,2\n", "line 2: 2 fields for 3 columns"),
        (b'x,y_pred,y_true\n1,2,"3\n', "malformed CSV"),
        (b"x,y_pred,y_true\n1,2,\xff\n", "line 2: not UTF-8"),
    ],
)
def test_broken_files(run: Run, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    assert message in run("evaluate", "--outputs", path).error


def test_mistakes(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [("x", "a", "b")])
    assert "no such file" in run("evaluate", "--outputs", tmp_path / "b.csv").error
    damaged = tmp_path / "c.csv.gz"
    damaged.write_bytes(b"no archive")
    assert "damaged .gz archive" in run("evaluate", "--outputs", damaged).error
    for option, value in (("--data", "d"), ("--condition", "all"), ("--max-samples", 3)):
        error = run("evaluate", "--outputs", path, option, value).error
        assert f"{option} does not go with --outputs" in error
    assert "nothing to evaluate" in run("evaluate").error
    assert "--seed" in run("evaluate", "--outputs", path, "--seed", -1).error


def test_no_model_library_is_imported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", [("x", "a", "b")])
    code = (
        "import sys; from gistkit.cli import main; "
        f"main(['evaluate', '--outputs', {str(path)!r}]); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
