"""`gistkit benchmark report`: the published files give the published numbers."""

import json
from pathlib import Path

import pytest

from tests.benchmark.benchmark_command import AsJson, Command

LLAMA = "pytorch-llama-7b-benchmarking-human.csv"
LLAMA_INSTRUCTION = "pytorch-llama-7b-benchmarking-prompt-human.csv"
T5 = "pytorch-flan-t5-xxl-benchmarking-human.csv"
HEAD = (
    "id,num_prompt_tokens,num_input_tokens,effective_num_gist_tokens,gist_index,first_run,model"
    ",cpu_time,flops"
)

# means without and with the cache, difference and how far its 95 % interval reaches, then
# reductions in percent: of the means, mean of each example's, their median; t
PUBLISHED = {
    (T5, "cpu_time"): (97035.9, 98527.8, -1491.96, 705, -1.54, -1.72, -1.85, -4.15),
    (T5, "cuda_time"): (30962.8, 29659.7, 1303.11, 204, 4.21, 4.07, 3.05, 12.51),
    (T5, "flops"): (7.15822e11, 4.26816e11, 2.89006e11, 2.1e10, 40.37, 57.18, 60.12, 27.00),
    (LLAMA, "cpu_time"): (64338.5, 67199.7, -2861.25, 733, -4.45, -4.90, -5.11, -7.65),
    (LLAMA, "cuda_time"): (23442.5, 21847.2, 1595.3, 301, 6.81, 6.40, 5.04, 10.40),
    (LLAMA, "flops"): (9.14683e11, 5.52488e11, 3.62195e11, 2.51e10, 39.60, 57.28, 61.22, 28.27),
    (LLAMA_INSTRUCTION, "cpu_time"): (
        63807.7, 67138.6, -3330.88, 674, -5.22, -5.57, -4.98, -9.69,
    ),
    (LLAMA_INSTRUCTION, "cuda_time"): (23449.9, 22068.6, 1381.3, 247, 5.89, 5.41, 4.29, 10.96),
    (LLAMA_INSTRUCTION, "flops"): (
        9.14683e11, 5.53095e11, 3.61587e11, 2.51e10, 39.53, 57.24, 61.20, 28.29,
    ),
}  # fmt: skip
AGAINST = {"cpu_time": (-61.107, -0.09), "cuda_time": (221.40, 1.00), "flops": (607062864.4, 0.11)}


@pytest.fixture
def published(shared: Path) -> list[Path]:
    folder = shared / "data" / "reference_results" / "benchmarking"
    return [folder / name for name in (T5, LLAMA, LLAMA_INSTRUCTION)]


def test_published_means_and_reductions(as_json: AsJson, published: list[Path]) -> None:
    result = as_json("report", *published)
    files = {file["file"]: file for file in result["files"]}
    assert {name: file["examples"] for name, file in files.items()} == dict.fromkeys(files, 252)
    assert round(files[LLAMA]["tokens_removed"], 1) == 39.6
    assert round(files[T5]["tokens_removed"], 1) == 41.3
    for (name, cost), expected in PUBLISHED.items():
        (mode,) = files[name]["modes"].values()
        found = mode["costs"][cost]
        base, mean, saved, reach, *shares = expected
        assert found["base_mean"] == pytest.approx(base, rel=1e-5)
        assert found["mean"] == pytest.approx(mean, rel=1e-5)
        assert found["saved"] == pytest.approx(saved, rel=1e-4)
        assert found["saved_95"] == pytest.approx(reach, rel=3e-3)
        names = ("reduction", "mean_reduction", "median_reduction", "t")
        assert [round(found[name], 2) for name in names] == shares
        low, high = found["reduction_interval"]
        assert low < found["reduction"] < high
        assert found["verdict"] == ("worse" if cost == "cpu_time" else "better")


def test_gists_against_instruction_caching(as_json: AsJson, published: list[Path]) -> None:
    result = as_json("report", *published)
    files = {file["file"]: file["modes"] for file in result["files"]}
    assert list(files[LLAMA_INSTRUCTION]) == ["instruction"]
    assert round(files[LLAMA_INSTRUCTION]["instruction"]["kept_tokens"], 1) == 27.3
    assert files[LLAMA]["gist"]["kept_tokens"] == 1
    (pair,) = result["against_instruction_cache"]
    assert (pair["gist"], pair["instruction"]) == (LLAMA, LLAMA_INSTRUCTION)
    for cost, (saved, reduction) in AGAINST.items():
        assert pair["costs"][cost]["saved"] == pytest.approx(saved, rel=1e-4)
        assert round(pair["costs"][cost]["reduction"], 2) == reduction
    verdicts = [pair["costs"][cost]["verdict"] for cost in ("cpu_time", "cuda_time", "flops")]
    assert verdicts == ["open", "better", "better"]


def test_the_written_report(command: Command, published: list[Path], tmp_path: Path) -> None:
    status, out, _ = command("report", *published, "--out", tmp_path)
    assert status == 0
    assert out.rstrip() == (tmp_path / "report.md").read_text().rstrip()
    assert "| CPU time, ms | 64.34 | 67.20 | -2.86 ± 0.73 | -4.45 [" in out
    assert json.loads((tmp_path / "report.json").read_text())["schema_version"] == 1
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x,y\n1,2\n", "no column id"),
        (f"{HEAD}\n", "holds no rows"),
        (f"{HEAD}\n0,9,3,1,5,gist,standard,7,8\n", "nothing to compare"),
        (f"{HEAD}\n0,9,3,1,5,gist,standard,7,8\n1,9,3,1,5,gist,gist,7,8\n", "the same examples"),
        (f"{HEAD}\n0,9,3,1,5,gist,standard,soon,8\n", "line 2: cpu_time is 'soon'"),
        (f"{HEAD}\n0,9,3,1,5,gist,standard,inf,8\n", "line 2: cpu_time is 'inf'"),
        (f"{HEAD}\n0,9,3,1,5,gist,standard,nan,8\n", "line 2: cpu_time is 'nan'"),
        (f"{HEAD}\n0,9,3,1,5,gist,standard,{'9' * 999},8\n", "line 2: cpu_time is '999"),
        (f"{HEAD}\n0,,3,1,5,gist,standard,7,8\n", "line 2: num_prompt_tokens is ''"),
        (f"{HEAD}\n{'9' * 5000},9,3,1,5,gist,standard,7,8\n", "line 2: id is '999"),
        (f"{HEAD}\n0,9\n", "line 2: num_input_tokens is None"),
        (f"{HEAD}\n0,9,3,1,5,gist,other,7,8\n", "line 2: model is 'other'"),
        (f"{HEAD}\n0,9,3,1,5,x,gist,7,8\n0,9,3,1,5,x,gist,7,8\n", "line 3: example 0 is there"),
    ],
)
def test_a_damaged_file_is_one_line(
    command: Command, tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    status, out, err = command("report", path)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_a_mark_of_byte_order_is_no_part_of_the_first_column(
    command: Command, tmp_path: Path
) -> None:
    rows = "0,9,3,1,5,gist,standard,7,8\n0,9,3,1,5,gist,gist,7,\n"
    (tmp_path / "a.csv").write_text(f"{HEAD}\n{rows}", encoding="utf-8-sig")
    assert command("report", tmp_path / "a.csv")[0] == 0


def test_no_such_file(command: Command, tmp_path: Path) -> None:
    status, _, err = command("report", tmp_path / "none.csv")
    assert status == 2 and "could not read" in err and err.count("\n") == 1


def test_equal_costs_have_no_t_and_are_the_same(as_json: AsJson, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = [f"{i},9,3,1,5,gist,{model},4,8" for i in range(3) for model in ("standard", "gist")]
    path.write_text("\n".join([HEAD, *rows, ""]))
    found = as_json("report", path)["files"][0]["modes"]["gist"]["costs"]["flops"]
    assert (found["t"], found["reduction"], found["verdict"]) == (None, 0, "same")
