"""`gistkit benchmark MODEL`: three modes in one run. Nothing here depends on how long they take."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from gistkit.benchmark import measure as measuring
from gistkit.benchmark.measure import measure
from gistkit.benchmark.prompts import Prompts
from gistkit.benchmark.sweep import random_prompts
from gistkit.testing import tiny_gist_model
from tests.benchmark.benchmark_command import AsJson, Command

SMALL = (
    "--rounds", 2, "--warmup", 0, "--batch-size", 1, "--batch-size", 2, "--instruction-tokens", 8,
    "--instruction-tokens", 24, "--input-tokens", 4, "--new-tokens", 3,
)  # fmt: skip

ONE = (
    "--rounds", 1, "--warmup", 0, "--batch-size", 1, "--instruction-tokens", 8, "--input-tokens", 4,
    "--new-tokens", 2,
)  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    return tiny_gist_model("llama", num_gist_tokens=2).save_pretrained(folder)


def test_a_report(as_json: AsJson, llama: Path, tmp_path: Path) -> None:
    found = as_json(llama, *SMALL, "--out", tmp_path / "out")
    assert found == json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert (found["schema_version"], found["whole"], found["model_type"]) == (1, True, "llama")
    sizes = [(cell["batch"], cell["instruction_tokens"]) for cell in found["cells"]]
    assert sizes == [(1, 8), (1, 24), (2, 8), (2, 24)]
    for cell in found["cells"]:
        assert set(cell["modes"]) == {"standard", "instruction", "gist"}
        kept = {mode: cell["modes"][mode]["kept_tokens"] for mode in cell["modes"]}
        assert kept == {"standard": 0, "instruction": cell["instruction_tokens"] + 2, "gist": 2}
        token = cell["modes"]["gist"]["kept_bytes"] / 2
        assert cell["modes"]["instruction"]["kept_bytes"] == token * kept["instruction"]
        for mode in cell["modes"].values():
            assert mode["flops"] == mode["flops_by_formula"]
            assert mode["prefill"]["low"] <= mode["prefill"]["median"] <= mode["prefill"]["high"]
            assert [len(mode["samples"][name]) for name in ("prefill", "decode")] == [2, 2]
            total = statistics.median(mode["samples"]["total"])
            assert mode["tokens_per_second"] == pytest.approx(cell["batch"] * 3 / total)
        equal = {name: share for name, share in cell["outputs"].items() if "full pass" in name}
        assert equal == dict.fromkeys(equal, 1)
        assert cell["outputs"]["instruction = standard"] == 1
    text = (tmp_path / "out" / "benchmark.md").read_text()
    assert "## Break-even" in text and "gist / instruction" in text
    assert (tmp_path / "out" / "benchmark.png").read_bytes().startswith(b"\x89PNG")


def test_an_encoder_decoder_cannot_keep_instructions(as_json: AsJson, tmp_path: Path) -> None:
    t5 = tiny_gist_model("t5").save_pretrained(tmp_path / "t5")
    found = as_json("run", t5, *ONE, "--out", tmp_path / "out")
    assert set(found["cells"][0]["modes"]) == {"standard", "gist"}
    assert list(found["cells"][0]["ratios"]) == ["gist / standard"]
    assert found["cells"][0]["outputs"]["gist = full pass"] == 1


def test_every_mode_once_a_round_in_a_random_order(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_gist_model("llama", num_gist_tokens=2)
    prompts = random_prompts(model, 1, 8, 4, 2, seed=0)
    asked: list[int] = []
    whole = Prompts.answer

    def answer(self: Prompts, prefix: Any, new: int) -> Any:
        asked.append(0 if prefix is None else prefix.num_tokens)
        return whole(self, prefix, new)

    monkeypatch.setattr(Prompts, "answer", answer)
    rounds: list[None] = []
    measure(prompts, 2, rounds=5, warmup=1, seed=3, after_round=lambda: rounds.append(None))
    orders = [tuple(asked[i : i + 3]) for i in range(0, 18, 3)]
    assert [sorted(order) for order in orders] == [[0, 2, 10]] * 6
    assert len(set(orders)) > 1
    assert len(rounds) == 6


def samples(make: float, standard: float, instruction: float, gist: float) -> Any:
    first = {"standard": standard, "instruction": instruction, "gist": gist}
    made = {"standard": 0.0, "instruction": 5.0, "gist": make}
    return {mode: {"prefill": [first[mode]] * 4, "make": [made[mode]] * 4} for mode in first}


def test_break_even_is_the_price_by_what_it_saves() -> None:
    modes = ("standard", "instruction", "gist")
    found = measuring.break_evens(samples(6.0, 4.0, 2.0, 1.0), modes, 0)
    reuses = {pair: value["reuses"] for pair, value in found.items()}
    assert reuses == {
        "instruction / standard": 2.5,
        "gist / standard": 2.0,
        "gist / instruction": 1.0,  # one more to make, one less to read
    }
    assert found["gist / standard"] == {"reuses": 2.0, "low": 2.0, "high": 2.0}


def test_a_cache_that_saves_nothing_never_pays() -> None:
    modes = ("standard", "instruction", "gist")
    found = measuring.break_evens(samples(6.0, 4.0, 2.0, 4.0), modes, 0)
    assert found["gist / standard"]["reuses"] is None
    assert found["gist / instruction"]["reuses"] is None
    cheap = measuring.break_evens(samples(3.0, 4.0, 2.0, 1.0), modes, 0)
    assert cheap["gist / instruction"]["reuses"] == 0


def test_ctrl_c_keeps_what_was_measured(
    command: Command, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gistkit.benchmark import sweep as sweeping

    calls: list[None] = []

    def interrupted(*args: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*args, **options)

    monkeypatch.setattr(sweeping, "measure", interrupted)
    status, out, err = command(llama, *SMALL, "--out", tmp_path / "out")
    assert (status, out) == (130, "")
    assert "stopped; 2 batches" in err
    found = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert (found["whole"], len(found["cells"])) == (False, 2)
    assert "Stopped before all" in (tmp_path / "out" / "benchmark.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rounds", 0), "--rounds must be at least 1, not 0"),
        (("--warmup", -1), "--warmup must be 0 or more"),
        (("--batch-size", 0), "--batch-size must be at least 1"),
        (("--instruction-tokens", 600), "more than the 512 this model can place"),
        (("-k", 0), "--num-gist-tokens must be at least 1"),
    ],
)
def test_a_mistake_is_one_line(
    command: Command, llama: Path, arguments: tuple[object, ...], message: str, tmp_path: Path
) -> None:
    status, out, err = command(llama, *arguments, "--out", tmp_path)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_no_such_model(command: Command) -> None:
    status, _, err = command("nothing/here/at/all", *SMALL)
    assert status == 2 and err.count("\n") == 1


def test_a_plain_model(as_json: AsJson, shared: Path, tmp_path: Path) -> None:
    stories = shared / "models" / "stories260K"
    found = as_json(stories, "--base", "-k", 3, *ONE, "--out", tmp_path)
    assert found["cells"][0]["num_gist_tokens"] == 3


def test_real_prompts(as_json: AsJson, llama: Path, tmp_path: Path) -> None:
    result = as_json(llama, "--data", "tasks", "--max-samples", 2, "--out", tmp_path)
    (file,) = result["files"]
    assert (file["file"], file["examples"]) == ("benchmark.csv", 2)
    assert list(file["modes"]) == ["instruction", "gist"]
    assert file["modes"]["gist"]["kept_tokens"] == 2
    (pair,) = result["against_instruction_cache"]
    assert pair["costs"]["flops"]["verdict"] in ("better", "open")
    assert pair["costs"]["flops"]["saved"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "benchmark.csv", "report.json", "report.md", "report.png",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "tasks", "--batch-size", 2), "--batch-size does not go with --data"),
        (("--data", "tasks", "--rounds", 21), "--rounds does not go with --data"),
        (("--data", "tasks", "--new-tokens", 8), "--new-tokens does not go with --data"),
        (("--max-samples", 9), "--max-samples needs --data"),
        (("--profiler", "deepspeed"), "--profiler needs --data"),
    ],
)
def test_no_option_is_ignored(
    command: Command, llama: Path, arguments: tuple[object, ...], message: str
) -> None:
    status, _, err = command(llama, *arguments)
    assert status == 2 and err.count("\n") == 1
    assert message in err
