"""Bad input: one line that says what to do, status 2, nothing on standard output."""

import json
import shutil
from pathlib import Path

import pytest
import typer
from transformers import GPT2Config, GPT2LMHeadModel

from gistkit.cli.app import app
from gistkit.cli.run import with_flags
from gistkit.testing import byte_tokenizer, tiny_gist_model, tiny_model
from tests.cli.console import Run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no instruction given; use --instruction TEXT"),
        (["--instruction", ""], "the instruction is empty"),
        (["--instruction", " \n"], "the instruction is empty"),
        (["--instruction", "\udcff"], "the instruction is not valid text"),
        (["--instruction", "a", "--num-gist-tokens", "0"], "--num-gist-tokens must be at least 1"),
        (["--instruction", "a", "--num_gist_tokens", "-3"], "at least 1, not -3"),
        (["--instruction", "a", "--num-gist-tokens", "two"], "'--num-gist-tokens'"),
        (["--instruction", "a", "--max-new-tokens", "0"], "--max-new-tokens must be at least 1"),
        (["--instruction", "a", "--max_new_tokens=-1"], "--max-new-tokens must be at least 1"),
        (["--jsonl", "x.jsonl", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["--instruction", "a", "--temperature", "-1"], "--temperature must be 0"),
        (["--instruction", "a", "--temperature", "nan"], "--temperature must be 0"),
        (["--instruction", "a", "--seed", "-1"], "--seed must be 0 or more"),
        (["--instruction", "a", "--precision", "fp8"], "is not one of 'fp32', 'bf16', 'fp16'"),
        (["--instruction", "a", "--device", "abacus"], "is not one of 'auto', 'cpu'"),
        (["--instruction", "a", "--gist", "b"], "exclude each other"),
        (["--gist", "b", "--save", "c"], "--gist does not go with --save"),
        (["--gist", "b", "--num-gist-tokens", "2"], "--gist does not go with --num-gist-tokens"),
        (["--jsonl", "b", "--compare"], "--jsonl does not go with --compare"),
        (["--instruction", "a", "--out", "b"], "--out keeps the results of --jsonl"),
        (["--instruction", "a", "--model-name-or-path", ""], "--model-name-or-path is empty"),
        (["--instruction"], "requires an argument"),
        (["--instrction", "a"], "No such option"),
    ],
)
def test_options(run: Run, arguments: list[str], message: str) -> None:
    assert message in run("compress", *arguments).error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--instruction", "a <GIST> b"], "contains <GIST> (at character 2); remove it"),
        (["--instruction", "a", "--input", "<GIST>"], "the input contains <GIST>"),
        (["--instruction", "a", "--num-gist-tokens", "3"], "trained for 2, 4 gist tokens, not 3"),
        (["--instruction", "a" * 600], "more than the 512 this model can place; shorten it"),
        (
            ["--instruction", "a", "--input", "b" * 600],
            "shorten the input or reduce --max-new-tokens",
        ),
        (["--instruction", "a", "--device", "mps"], "device mps is not available here"),
        (["--gist", "nowhere.gist"], "no gist file at nowhere.gist"),
        (["--jsonl", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_prompts_and_files(run: Run, decoder: Path, arguments: list[str], message: str) -> None:
    assert message in run("compress", "--model-name-or-path", decoder, *arguments).error


def test_no_such_model(run: Run, tmp_path: Path) -> None:
    for name in (tmp_path / "nowhere", "nobody/nothing"):
        error = run("compress", "--model-name-or-path", name, "--instruction", "a").error
        assert f"cannot load a model from '{name}'" in error
        assert "give a folder or a hub id" in error


def test_a_folder_without_a_model(run: Run, tmp_path: Path) -> None:
    error = run("compress", "--model-name-or-path", tmp_path, "--instruction", "a").error
    assert "there is no config.json in it that says what model it is; give" in error


def test_not_a_gist_model(run: Run, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    error = run("compress", "--model-name-or-path", tmp_path, "--instruction", "a").error
    assert "is not a gist model" in error
    assert "gistkit train" in error


def test_absolute_positions(run: Run, tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=300)).save_pretrained(
        tmp_path
    )
    byte_tokenizer().save_pretrained(tmp_path)
    error = run("compress", "--model-name-or-path", tmp_path, "--instruction", "a").error
    assert "'gpt2' is not supported: it uses absolute positions" in error


def test_damaged_weights(run: Run, decoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(decoder, folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    error = run("compress", "--model-name-or-path", folder, "--instruction", "a").error
    assert "cannot load a model from" in error


def test_gist_of_another_model(run: Run, decoder: Path, tmp_path: Path) -> None:
    file = tmp_path / "other.gist"
    tiny_gist_model("llama", seed=1).compress("a").save(file)
    error = run("compress", "--model-name-or-path", decoder, "--gist", file).error
    assert "made by another model" in error


def test_damaged_gist(run: Run, decoder: Path, tmp_path: Path) -> None:
    whole, cut, batch = tmp_path / "whole", tmp_path / "cut", tmp_path / "batch"
    model = tiny_gist_model("llama")
    model.compress("a").save(whole)
    model.compress(["a", "b"]).save(batch)
    cut.write_bytes(whole.read_bytes()[:-9])
    options = ("--model-name-or-path", decoder)
    assert "is damaged" in run("compress", *options, "--gist", cut).error
    assert "holds 2 gists" in run("compress", *options, "--gist", batch).error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no examples"),
        ('{"instruction": "a"}\n{"instruction": \n', "line 2: malformed JSON"),
        ('{"instruction": "a"}\n{"input": "b"}\n', "line 2: field 'instruction' is missing"),
        ('{"instruction": 3}\n', "line 1: field 'instruction' is a number"),
        ('["a"]\n', "line 1: expected an object"),
        ('{"instruction": "a"}\n\n{"instruction": " "}\n', "line 3: the instruction is empty"),
        ('{"instruction": "a", "input": "<GIST>"}\n', "line 1: the input contains <GIST>"),
        (json.dumps({"instruction": "a" * 600}), "line 1: the instruction has"),
        (json.dumps({"instruction": "a", "input": "b" * 600}), "line 1: the input has"),
    ],
)
def test_files_of_prompts(
    run: Run, decoder: Path, tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(content)
    error = run("compress", "--model-name-or-path", decoder, "--jsonl", file).error
    assert message in error
    assert str(file) in error


def test_unwritable_places(run: Run, decoder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "x"
    model = ("--model-name-or-path", decoder, "--max-new-tokens", 1)
    assert (
        "could not write" in run("compress", *model, "--instruction", "a", "--save", inside).error
    )
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"instruction": "a"}\n')
    assert "could not write" in run("compress", *model, "--jsonl", prompts, "--out", inside).error


def test_commands(run: Run) -> None:
    assert "No such command 'compres'" in run("compres").error
    assert "Missing option '--sources'" in run("data", "build").error


@pytest.mark.parametrize(
    ("words", "message", "expected"),
    [
        (["compress"], "reduce `max_new_tokens`", "reduce --max-new-tokens"),
        (["compress"], "add `force=True`", "add --force"),
        (["compress"], "give `temperature=0`", "give --temperature 0"),
        (["compress"], "use `device='cpu'`", "use --device cpu"),
        (["weights", "recover"], "or `check_integrity_naively=False`", "--no-check-integrity-na"),
        (["check"], "load `model` first", "load MODEL first"),
        (["check"], "`do_sample` and `gistkit check`", "`do_sample` and `gistkit check`"),
        ([], "`force=True`", "`force=True`"),
    ],
)
def test_parameters_become_flags(words: list[str], message: str, expected: str) -> None:
    assert expected in with_flags(message, typer.main.get_command(app), words)
