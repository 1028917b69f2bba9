"""The published protocol, through `gistkit.train` with the published keys."""

import csv
from pathlib import Path
from typing import Any

import pytest

from gistkit.benchmark.examples import run_examples
from gistkit.benchmark.files import GIST, INSTRUCTION, STANDARD
from gistkit.errors import GistkitError, MissingExtraError, OptionError
from gistkit.models import decoder
from gistkit.prompts import Example
from gistkit.testing import byte_tokenizer, tiny_gist_model, tiny_model
from gistkit.train import run_config
from tests.benchmark.benchmark_command import AsJson

EXAMPLES = [Example("Answer in one word.", "Capital?", "Paris"), Example("Name a color.", "", "r")]
PUBLISHED = [
    "id", "num_prompt_tokens", "num_input_tokens", "effective_num_gist_tokens", "gist_index",
    "first_run", "model",
]  # fmt: skip


def raw(model: Path, folder: Path, **training: Any) -> dict[str, Any]:
    """A run that only experiments."""
    return {
        "model": {"model_name_or_path": str(model)},
        "data": {
            "dataset_name": "tasks",
            "tasks": {"stages": [["reply", 1, 8]], "validation_rows": 3},
        },
        "training": {
            "gist": {"num_gist_tokens": 2},
            "output_dir": str(folder / "out"),
            "do_train": False,
            "do_eval": True,
            "do_benchmarking": True,
            "max_benchmarking_samples": 3,
            "benchmarking_output_file": str(folder / "b.csv"),
            "use_cpu": True,
            **training,
        },
    }


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    return tiny_gist_model("llama", num_gist_tokens=2).save_pretrained(folder)


def test_the_published_file(llama: Path, tmp_path: Path, as_json: AsJson) -> None:
    results = run_config(raw(llama, tmp_path, do_benchmarking_sanity_checks=True))
    rows = read(tmp_path / "b.csv")
    assert list(rows[0])[:7] == PUBLISHED
    assert {"cpu_time", "cuda_time", "flops", "prefill", "kept_bytes"} <= set(rows[0])
    assert [row["model"] for row in rows] == ["standard", "gist"] * 3
    assert [int(row["id"]) for row in rows] == [0, 0, 1, 1, 2, 2]
    for row in rows:
        whole, new, span, index = (int(row[name]) for name in PUBLISHED[1:5])
        assert (span, index + span + new) == (2, whole)
        assert row["first_run"] in ("standard", "gist")
    found = as_json("report", tmp_path / "b.csv")["files"][0]["modes"]["gist"]
    assert found["costs"]["flops"]["reduction"] == results["benchmark_flops_reduction"] > 0
    assert not (tmp_path / "out" / "eval_results.json").exists()


def test_instruction_caching_is_known_by_its_span(
    llama: Path, tmp_path: Path, as_json: AsJson
) -> None:
    run_config(raw(llama, tmp_path, benchmarking_prompt_caching=True))
    rows = read(tmp_path / "b.csv")
    assert {row["model"] for row in rows} == {"standard", "gist"}
    assert {row["gist_index"] for row in rows} == {"0"}
    assert list(as_json("report", tmp_path / "b.csv")["files"][0]["modes"]) == ["instruction"]


def test_after_training(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_model("llama", vocab_size=264).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    asked = raw(base, tmp_path, do_train=True, max_steps=1, per_device_train_batch_size=2)
    asked["training"] |= {"eval_strategy": "no", "save_strategy": "no", "disable_tqdm": True}
    asked["training"] |= {"save_strategy": "steps", "save_steps": 1}
    results = run_config(asked)
    assert results["benchmark_flops_reduction"] > 0
    assert "train_loss" in results
    assert len(read(tmp_path / "b.csv")) == 6


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"benchmarking_profiler": "other"}, "training.benchmarking_profiler must be one of"),
        ({"max_benchmarking_samples": 0}, "training.max_benchmarking_samples must be at least 1"),
        ({"gist": {"condition": "neg_control"}}, "neg_control"),
    ],
)
def test_a_mistake_is_one_line(
    llama: Path, tmp_path: Path, training: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        run_config(raw(llama, tmp_path, **training))
    assert not (tmp_path / "b.csv").exists()


def test_a_failed_sanity_check_ends_the_run(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = decoder.count_positions
    monkeypatch.setattr(decoder, "count_positions", lambda padding: 2 * whole(padding))
    with pytest.raises(GistkitError, match=r"not exact from example 0: decoder layer 0, keys"):
        run_config(raw(llama, tmp_path, do_benchmarking_sanity_checks=True))


def test_three_modes_in_one_run() -> None:
    model = tiny_gist_model("llama", num_gist_tokens=2)
    modes = (STANDARD, INSTRUCTION, GIST)
    found = list(run_examples(model, EXAMPLES, modes=modes, seed=1))
    assert [[row["model"] for row in rows] for rows in found] == [list(modes)] * 2
    for rows in found:
        flops = {row["model"]: row["flops"] for row in rows}
        assert flops[STANDARD] > flops[INSTRUCTION] > flops[GIST]
        kept = {row["model"]: row["effective_num_gist_tokens"] for row in rows}
        assert kept[GIST] == 2 < kept[INSTRUCTION]


def test_an_encoder_decoder() -> None:
    model = tiny_gist_model("t5", num_gist_tokens=2)
    (first, _) = run_examples(model, EXAMPLES)
    assert first[0]["flops"] > first[1]["flops"]
    with pytest.raises(OptionError, match="cannot cache instructions"):
        list(run_examples(model, EXAMPLES, modes=(STANDARD, INSTRUCTION)))


def test_deepspeed_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "deepspeed.profiling.flops_profiler", None)
    model = tiny_gist_model("llama", num_gist_tokens=2)
    with pytest.raises(MissingExtraError, match="deepspeed is not installed"):
        list(run_examples(model, EXAMPLES, profiler="deepspeed"))
