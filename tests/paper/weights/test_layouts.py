"""Bases whose files differ from the tuned model's: tied weights, aliases, padding; old pickles."""

import errno
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from gistkit.errors import OptionError, SaveError
from gistkit.paper import weight_files
from gistkit.paper.weight_diff import make_diff, recover, recovered
from gistkit.paper.weight_files import WeightFiles
from gistkit.testing import tiny_model
from tests.paper.weights.stand_ins import (
    contents,
    make_base,
    make_tuned,
    same_bits,
    save,
    save_as_released,
)

SHARED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def round_trip(place: Path) -> None:
    make_diff(place / "raw", place / "tuned", place / "diff")
    recover(place / "raw", place / "diff", place / "out")
    assert same_bits(contents(place / "out"), contents(place / "tuned"))


@pytest.mark.parametrize("raw_has_all", [True, False])
def test_t5_saves_one_matrix_under_three_names_or_one(raw_has_all: bool, tmp_path: Path) -> None:
    """And its padded vocabulary is cut when `<GIST>` is added, as published."""
    for which, vocabulary in (("raw", 272), ("tuned", 260)):
        model = tiny_model("t5", seed=len(which), vocab_size=vocabulary)
        state = {n: t for n, t in model.state_dict().items() if n not in SHARED}
        if (which == "raw") == raw_has_all:
            state |= dict.fromkeys(SHARED, state["shared.weight"])
        save_as_released(tmp_path / which, state, model.config.to_dict())
    round_trip(tmp_path)


def test_a_base_whose_head_is_its_embedding(tmp_path: Path) -> None:
    base = tiny_model("llama", vocab_size=259, tie_word_embeddings=True, seed=1)
    save(base, tmp_path / "raw", torch.float32)
    save(tiny_model("llama", seed=2), tmp_path / "tuned", torch.float32)
    assert "lm_head.weight" not in WeightFiles(tmp_path / "raw")
    assert "lm_head.weight" in WeightFiles(tmp_path / "tuned")
    round_trip(tmp_path)


def test_a_pickle_of_before_2020(tmp_path: Path) -> None:
    for which, seed in (("raw", 1), ("tuned", 2)):
        model = tiny_model("llama", seed=seed)
        model.config.save_pretrained(tmp_path / which)
        path = tmp_path / which / "pytorch_model.bin"
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    round_trip(tmp_path)


def test_numbers_of_several_precisions_and_a_scalar(tmp_path: Path) -> None:
    for which in ("raw", "tuned"):
        generator = torch.Generator().manual_seed(len(which))
        state = {
            "half": torch.randn(3, 5, generator=generator).half(),
            "brain": torch.randn(7, generator=generator).bfloat16(),
            "single": torch.randn(2, 3, 3, generator=generator),
            "scalar": torch.randn((), generator=generator),
            "none": torch.empty(0, 4),
        }
        save_as_released(tmp_path / which, state, {})
    round_trip(tmp_path)
    assert {n: e.shape for n, e in WeightFiles(tmp_path / "out").items()} == {
        "half": (3, 5), "brain": (7,), "single": (2, 3, 3), "scalar": (), "none": (0, 4),
    }  # fmt: skip


def test_numbers_that_are_no_weights(tmp_path: Path) -> None:
    for which in ("raw", "tuned"):
        save_as_released(tmp_path / which, {"ids": torch.arange(4), "more": torch.zeros(1)}, {})
    with pytest.raises(OptionError, match=r"ids in .* is no float32, bfloat16 or float16 tensor"):
        make_diff(tmp_path / "raw", tmp_path / "tuned", tmp_path / "diff")


def test_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_base(tmp_path / "raw")
    make_tuned(tmp_path / "tuned", tmp_path / "raw")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weight_files.TensorFile, "append", full)
    with pytest.raises(SaveError, match=r"could not write .*diff: No space left on device; free"):
        make_diff(tmp_path / "raw", tmp_path / "tuned", tmp_path / "diff")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw", "tuned"]


def test_two_at_once_make_one(tmp_path: Path) -> None:
    make_base(tmp_path / "raw")
    make_tuned(tmp_path / "tuned", tmp_path / "raw")
    make_diff(tmp_path / "raw", tmp_path / "tuned", tmp_path / "diff")

    def load(_: int) -> str:
        return recovered(
            str(tmp_path / "diff"), str(tmp_path / "raw"), cache_dir=str(tmp_path / "cache")
        )

    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(load, range(4)))
    (folder,) = folders
    assert [str(path) for path in (tmp_path / "cache/recovered").iterdir()] == [folder]
    assert same_bits(contents(Path(folder)), contents(tmp_path / "tuned"))
    record = json.loads((tmp_path / "diff/weight_diff.json").read_text())
    assert record["base"] == "raw"
