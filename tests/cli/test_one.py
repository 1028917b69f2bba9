"""`gistkit compress` of one prompt."""

import json
import re
from pathlib import Path

import pytest

from gistkit.gist import Gist, instruction_hash
from gistkit.model import GistModel
from tests.cli.console import Run

INSTRUCTION = "Translate to French."


def test_answers_as_the_library_does_and_says_what_it_saved(run: Run, decoder: Path) -> None:
    ended = run(
        "compress", "--model_name_or_path", decoder, "--instruction", INSTRUCTION,
        "--input", "cat", "--max_new_tokens", 8, "--json",
    )  # fmt: skip
    assert (ended.status, ended.err) == (0, "")
    (line,) = ended.out.splitlines()
    found = json.loads(line)

    model = GistModel.from_pretrained(decoder)
    gist = model.compress(INSTRUCTION)
    (expected,) = model.generate("cat", gist, max_new_tokens=8)
    prompt = len(model.encoder.instruction(INSTRUCTION, 2))
    assert found["output"] == expected
    assert found["fingerprint"] == model.fingerprint
    assert found["prompt_tokens"] == prompt
    assert found["compression_factor"] == pytest.approx(prompt / 2, abs=1e-4)
    assert found["kv_bytes_after"] == gist.num_bytes
    assert found["kv_bytes_before"] == model.cache_prompt(INSTRUCTION).num_bytes
    assert found["cache"] == [
        {"what": "keys", "tensors": 2, "shape": [1, 2, 2, 10]},
        {"what": "values", "tensors": 2, "shape": [1, 2, 2, 10]},
    ]


def test_reports_to_people_what_the_published_script_did(run: Run, decoder: Path) -> None:
    ended = run(
        "compress", "--model-name-or-path", decoder, "--instruction", INSTRUCTION,
        "--num-gist-tokens", 4, "--max-new-tokens", 3,
    )  # fmt: skip
    assert (ended.status, ended.err) == (0, "")
    prompt = len(f"<Instruction: {INSTRUCTION}\n") + 4  # a byte a token, bos and gist tokens
    assert ended.out.startswith(f"Instruction: {INSTRUCTION}\n")
    assert f"into 4 gist tokens (compression factor {prompt / 4:.2f}x" in ended.out
    assert "2 x keys [1, 2, 4, 10]" in ended.out
    assert re.search(r"^Cache size: [\d.]+ KiB -> 1\.25 KiB$", ended.out, re.MULTILINE)
    assert "\nOutput: " in ended.out


def test_dashes_and_underscores_are_the_same(run: Run, decoder: Path) -> None:
    spellings = [
        ("--model_name_or_path", "--num_gist_tokens", "--max_new_tokens", "--cache_dir"),
        ("--model-name-or-path", "--num-gist-tokens", "--max-new-tokens", "--cache-dir"),
    ]
    outputs = set()
    for model, k, new, cache in spellings:
        ended = run(
            "compress", model, decoder, k, 2, new, 4, cache, "x", "--instruction", "Say.", "--json"
        )
        outputs.add(json.loads(ended.out)["output"])
    assert len(outputs) == 1


def test_a_saved_gist_answers_as_its_instruction(run: Run, decoder: Path, tmp_path: Path) -> None:
    model = ("--model-name-or-path", decoder, "--max-new-tokens", 6, "--input", "dog", "--json")
    file = tmp_path / "french.gist"
    made = json.loads(run("compress", *model, "--instruction", INSTRUCTION, "--save", file).out)
    used = json.loads(run("compress", *model, "--gist", file).out)
    assert made["saved"] == str(file)
    assert used["instruction"] is None
    assert used["instruction_sha256"] == instruction_hash(INSTRUCTION)
    for same in ("output", "prompt_tokens", "compression_factor", "kv_bytes_after"):
        assert used[same] == made[same]


def test_a_file_is_replaced_only_by_force(run: Run, decoder: Path, tmp_path: Path) -> None:
    file = tmp_path / "kept"
    file.write_text("precious")
    arguments = (
        "compress", "--model-name-or-path", decoder, "--instruction", "Say.", "--save", file,
        "--max-new-tokens", 1,
    )  # fmt: skip
    assert run(*arguments).error == (
        f"{file} exists already; choose another name, or --force to replace it"
    )
    assert file.read_text() == "precious"
    assert run(*arguments, "--force").status == 0
    assert Gist.load(file).num_tokens == 2


def test_the_default_length_is_what_positions_allow(run: Run, tmp_path: Path) -> None:
    from gistkit.testing import tiny_gist_model

    model = tiny_gist_model(num_gist_tokens=2, max_position_embeddings=64)
    model.save_pretrained(tmp_path)
    ended = run(
        "compress", "--model-name-or-path", tmp_path, "--instruction", "Say.", "--input", "x",
        "--json",
    )  # fmt: skip
    assert json.loads(ended.out)["max_new_tokens"] == 64 - 2 - len(model.encoder.input("x"))


def test_sampling_repeats_under_a_seed(run: Run, decoder: Path) -> None:
    def sample(seed: int) -> str:
        ended = run(
            "compress", "--model-name-or-path", decoder, "--instruction", "Say.", "--json",
            "--max-new-tokens", 12, "--temperature", 1.5, "--seed", seed,
        )  # fmt: skip
        output: str = json.loads(ended.out)["output"]
        return output

    assert sample(1) == sample(1) != sample(2)


def test_compare_puts_four_modes_side_by_side(
    run: Run, decoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = GistModel.from_pretrained(decoder)
    arguments = (
        "compress", "--model-name-or-path", decoder, "--instruction", INSTRUCTION,
        "--input", "cat", "--max-new-tokens", 6, "--compare",
    )  # fmt: skip
    found = json.loads(run(*arguments, "--json").out)["compare"]
    gist, cached, full, none = found["modes"]
    assert [mode["mode"] for mode in found["modes"]] == [
        "gist", "cached prompt", "full prompt", "no prompt",
    ]  # fmt: skip
    options = {"max_new_tokens": 6}
    assert gist["output"] == model.generate("cat", model.compress(INSTRUCTION), **options)[0]
    assert full["output"] == model.generate("cat", instructions=INSTRUCTION, **options)[0]
    assert cached["output"] == full["output"]
    assert none["output"] == model.generate("cat", **options)[0]
    prompt = len(model.encoder.instruction(INSTRUCTION, 2))
    assert [mode["kept_tokens"] for mode in found["modes"]] == [2, prompt, 0, 0]
    assert gist["read_tokens"] == none["read_tokens"] == full["read_tokens"] - prompt
    assert all(0 < mode["first_token_seconds"] < mode["total_seconds"] for mode in found["modes"])

    monkeypatch.setenv("COLUMNS", "120")
    table = run(*arguments).out
    for text in ("cached prompt", "no prompt", "time to first token", "on this machine"):
        assert text in table


def test_compare_says_why_an_encoder_decoder_has_no_cached_prompt(
    run: Run, encoder_decoder: Path
) -> None:
    ended = run(
        "compress", "--model-name-or-path", encoder_decoder, "--instruction", INSTRUCTION,
        "--max-new-tokens", 4, "--compare", "--json",
    )  # fmt: skip
    gist, cached, full, _ = json.loads(ended.out)["compare"]["modes"]
    assert "cannot cache a full prompt" in cached["missing"]
    assert gist["missing"] == full["missing"] == ""


def test_compare_takes_an_untrained_number_of_gist_tokens(run: Run, decoder: Path) -> None:
    ended = run(
        "compress", "--model-name-or-path", decoder, "--instruction", INSTRUCTION, "--json",
        "--num-gist-tokens", 3, "--allow_untrained", "--max-new-tokens", 2, "--compare",
    )  # fmt: skip
    modes = json.loads(ended.out)["compare"]["modes"]
    assert modes[0]["kept_tokens"] == 3
    assert not any(mode["missing"] for mode in modes)
