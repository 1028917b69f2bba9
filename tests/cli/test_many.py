"""`gistkit compress --jsonl`: many prompts, interrupted and resumed."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest

from gistkit.model import GistModel
from tests.cli.console import Run

PROMPTS = [
    {"instruction": "Translate to French.", "input": "cat"},
    {"instruction": "Name the capital of the country.", "input": "Italy"},
    {"instruction": "Translate to French.", "input": "a longer sentence, with commas"},
    {"instruction": "Sing."},
    {"instruction": "Translate to French.", "input": "dog", "output": "chien"},
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    return file


def options(decoder: Path, prompts: Path) -> tuple[object, ...]:
    return (
        "compress", "--model-name-or-path", decoder, "--jsonl", prompts, "--max-new-tokens", 6,
        "--batch-size", 2,
    )  # fmt: skip


def results(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def interrupt_after(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """Ctrl-C while the batch after that many is answered."""
    real, calls = GistModel.generate, 0

    def generate(self: GistModel, *args: Any, **kwargs: Any) -> list[str]:
        nonlocal calls
        calls += 1
        if calls > batches:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(GistModel, "generate", generate)


def test_each_line_is_answered_as_alone(run: Run, decoder: Path, prompts: Path) -> None:
    ended = run(*options(decoder, prompts))
    assert (ended.status, ended.err) == (0, "")
    found = results(ended.out)
    model = GistModel.from_pretrained(decoder)
    for prompt, result in zip(PROMPTS, found, strict=True):
        gist = model.compress(prompt["instruction"])
        length = len(model.encoder.instruction(prompt["instruction"], 2))
        alone = model.generate(prompt.get("input", ""), gist, max_new_tokens=6)
        assert [result["output"]] == alone
        assert result["input"] == prompt.get("input", "")
        assert result["compression_factor"] == pytest.approx(length / 2, abs=1e-4)
        assert result["kv_bytes_before"] == result["kv_bytes_after"] // 2 * length
    assert set(found[0]) == {
        "instruction", "input", "output", "num_gist_tokens", "compression_factor",
        "kv_bytes_before", "kv_bytes_after", "run",
    }  # fmt: skip


def test_an_instruction_is_compressed_once(
    run: Run, decoder: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = GistModel.compress
    compressed: list[str] = []

    def compress(self: GistModel, instructions: list[str], **kwargs: Any) -> Any:
        compressed.extend(instructions)
        return real(self, instructions, **kwargs)

    monkeypatch.setattr(GistModel, "compress", compress)
    assert run(*options(decoder, prompts)).status == 0
    assert sorted(compressed) == sorted({prompt["instruction"] for prompt in PROMPTS})


def test_a_file_of_results_is_whole_and_not_replaced(
    run: Run, decoder: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "deep" / "answers.jsonl"
    command = (*options(decoder, prompts), "--out", out)
    ended = run(*command)
    assert (ended.status, ended.out) == (0, "")
    assert results(out.read_text()) == results(run(*options(decoder, prompts)).out)
    assert [path.name for path in out.parent.iterdir()] == ["answers.jsonl"]
    assert "exists already" in run(*command).error
    assert run(*command, "--force").status == 0


def test_an_interrupted_run_resumes(
    run: Run, decoder: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = results(run(*options(decoder, prompts)).out)
    out, partial = tmp_path / "answers.jsonl", tmp_path / "answers.jsonl.partial"
    command = (*options(decoder, prompts), "--out", out)
    with monkeypatch.context() as patch:
        interrupt_after(patch, batches=1)
        ended = run(*command)
    assert ended.status == 130
    assert f"2 of 5 results are in {partial}; rerun the same command to resume" in ended.err
    assert ended.err.startswith("gistkit: stopped; ")  # no bar without a terminal
    assert ended.err.endswith("gistkit: interrupted\n")
    assert not out.exists()
    assert results(partial.read_text()) == whole[:2]

    with partial.open("a") as file:
        file.write('{"instruction": "Tr')  # a line that the disk had no room for
    with monkeypatch.context() as patch:
        interrupt_after(patch, batches=2)  # what is left takes two batches, not three
        assert run(*command).status == 0
    assert results(out.read_text()) == whole
    assert not partial.exists()


def test_results_on_standard_output_survive_an_interrupt(
    run: Run, decoder: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(monkeypatch, batches=1)
    ended = run(*options(decoder, prompts))
    assert ended.status == 130
    assert len(results(ended.out)) == 2
    assert "2 of 5 results are written" in ended.err


def test_a_full_disk_keeps_whole_lines_and_the_run_resumes(
    run: Run, decoder: Path, prompts: Path, tmp_path: Path
) -> None:
    whole = run(*options(decoder, prompts)).out
    first_two = sum(len(line) for line in whole.splitlines(keepends=True)[:2])
    out = tmp_path / "answers.jsonl"
    command = (*options(decoder, prompts), "--out", out)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (first_two + 50, limits[1]))
    try:
        ended = run(*command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ended.status == 2
    assert "2 of 5 results are in" in ended.err
    assert f"gistkit: error: could not write {out}: File too large" in ended.err
    assert not out.exists()
    assert run(*command).status == 0
    assert out.read_text() == whole


@pytest.mark.parametrize("change", ["other prompts", "other options"])
def test_a_partial_file_of_another_run_is_refused(
    run: Run,
    decoder: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    out = tmp_path / "answers.jsonl"
    command: tuple[object, ...] = (*options(decoder, prompts), "--out", out)
    with monkeypatch.context() as patch:
        interrupt_after(patch, batches=1)
        assert run(*command).status == 130
    if change == "other prompts":
        prompts.write_text(json.dumps({"instruction": "Sing."}) + "\n")
    else:
        command = (*command, "--num-gist-tokens", 4)
    ended = run(*command)
    assert "remove it, or add --force to start over" in ended.error
    assert run(*command, "--force").status == 0
    asked = prompts.read_text().splitlines()
    assert len(results(out.read_text())) == len(asked)


def test_without_a_length_all_lines_get_the_same(run: Run, tmp_path: Path, prompts: Path) -> None:
    from gistkit.testing import tiny_gist_model

    tiny_gist_model(num_gist_tokens=2, max_position_embeddings=80).save_pretrained(tmp_path / "m")
    asked = ("compress", "--model-name-or-path", tmp_path / "m", "--jsonl", prompts)
    one, three = (results(run(*asked, "--batch-size", n).out) for n in (1, 3))
    assert one == three
    assert len(one) == len(PROMPTS)
