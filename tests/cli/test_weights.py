"""`gistkit weights` and the published script."""

import json
import warnings
from pathlib import Path
from runpy import run_module

import pytest

from gistkit.model import GistModel
from gistkit.testing import byte_tokenizer, tiny_model
from tests.cli.console import Run


def base_of(decoder: Path, folder: Path) -> Path:
    """A model of the same shape; it already has room for `<GIST>`."""
    tiny_model("llama", seed=3).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_diff_verify_recover(run: Run, decoder: Path, tmp_path: Path) -> None:
    raw, diff, out = base_of(decoder, tmp_path / "raw"), tmp_path / "diff", tmp_path / "out"
    ended = run("weights", "diff", "--path_raw", raw, "--path_tuned", decoder, "--path_diff", diff)
    assert ended.status == 0
    assert ended.out.startswith(f"wrote {diff}: 21 tensors, ")
    ended = run("weights", "recover", "--path_raw", raw, "--path_diff", diff, "--path_tuned", out)
    assert (ended.status, ended.out, ended.err) == (0, f"wrote {out}\n", "")
    ended = run(
        "weights", "verify", "--path_diff", diff, "--path_raw", raw, "--path_tuned", out, "--json"
    )
    assert json.loads(ended.out)["checked"] == ["diff", "raw", "tuned"]
    ended = run("weights", "verify", "--path-diff", diff)
    assert ended.out == "intact: diff, 21 tensors each\n"
    tuned = GistModel.from_pretrained(decoder)
    assert GistModel.from_pretrained(out).fingerprint == tuned.fingerprint


def test_the_diff_is_applied_by_itself(run: Run, decoder: Path, tmp_path: Path) -> None:
    raw, diff = base_of(decoder, tmp_path / "raw"), tmp_path / "diff"
    run("weights", "diff", "--path_raw", raw, "--path_tuned", decoder, "--path_diff", diff)
    command = (
        "compress", "--instruction", "Say it.", "--max_new_tokens", 4, "--cache_dir",
        tmp_path / "cache", "--json", "--model_name_or_path",
    )  # fmt: skip
    ended = run(*command, diff, "--base_llama_path", raw)
    assert (ended.status, ended.err) == (0, "")
    expected = json.loads(run(*command, decoder).out)
    assert json.loads(ended.out)["fingerprint"] == expected["fingerprint"]
    assert json.loads(ended.out)["output"] == expected["output"]
    assert "is a weight diff; recover the model" in run(*command, diff).error


def test_mistakes(run: Run, decoder: Path, tmp_path: Path) -> None:
    def recover(raw: Path, *more: object) -> str:
        return run(
            "weights", "recover", "--path_raw", raw, "--path_diff", decoder,
            "--path_tuned", tmp_path / "out", *more,
        ).error  # fmt: skip

    assert "no such folder, and no such model" in recover(tmp_path / "nothing")
    assert "unknown precision 'int8'" in recover(decoder, "--precision", "int8")
    tiny_model("t5").save_pretrained(tmp_path / "t5")
    assert f"t5 is not the base of {decoder}: it has no lm_head.weight" in recover(tmp_path / "t5")
    (tmp_path / "empty").mkdir()
    assert f"there are no weights in {tmp_path / 'empty'}" in recover(tmp_path / "empty")
    assert (
        "has no weight_diff.json and is no"
        in run("weights", "verify", "--path_diff", decoder).error
    )
    assert not (tmp_path / "out").exists()


def test_the_published_script(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = base_of(decoder, tmp_path / "raw")

    def script(*arguments: object) -> None:
        monkeypatch.setattr("sys.argv", ["weight_diff", *map(str, arguments)])
        with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            run_module("gistkit.weight_diff", run_name="__main__")
        assert ended.value.code == 0

    names = ("--path_raw", raw, "--path_diff", tmp_path / "diff", "--path_tuned")
    script("make_diff", *names, decoder)
    script("recover", *names, tmp_path / "out")
    tuned = GistModel.from_pretrained(decoder)
    assert GistModel.from_pretrained(tmp_path / "out").fingerprint == tuned.fingerprint


def test_no_subcommand_shows_the_help(run: Run) -> None:
    assert run("weights").out == run("weights", "--help").out != ""
