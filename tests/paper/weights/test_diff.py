"""A diff and its base give the tuned model back, bit for bit, or an error and nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gistkit.errors import ModelNotFoundError, OptionError, SaveError
from gistkit.model import GistModel
from gistkit.paper import weight_files
from gistkit.paper.manifest import CORRECTIONS, MANIFEST, correct, corrections
from gistkit.paper.weight_diff import make_diff, recover, verify
from gistkit.testing import VOCABULARY, tiny_model
from tests.paper.weights.stand_ins import (
    SMALL,
    contents,
    make_base,
    make_tuned,
    make_unrelated,
    same_bits,
    save,
)

TYPES = [torch.float32, torch.bfloat16, torch.float16]


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def damage(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Rewrite the first shard that holds a matrix of a layer."""
    path = next(p for p in shards(folder) if any("mlp" in name for name in load_file(p)))
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


# exactness


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("make", [make_tuned, make_unrelated])
def test_recovered_weights_equal_the_tuned_ones_in_every_bit(
    family: str, dtype: torch.dtype, make: object, tmp_path: Path
) -> None:
    raw, tuned, diff, out = (tmp_path / name for name in ("raw", "tuned", "diff", "out"))
    make_base(raw, family, dtype)
    if make is make_tuned:
        make_tuned(tuned, raw, family, dtype)
    else:
        make_unrelated(tuned, family, dtype)
    make_diff(raw, tuned, diff, shard_bytes=SMALL)
    recover(raw, diff, out, shard_bytes=2 * SMALL)
    assert len(shards(raw)) > 1 and len(shards(diff)) > len(shards(out)) > 1
    assert same_bits(contents(out), contents(tuned))
    verify(diff, raw=raw, tuned=out)
    loaded = GistModel.from_pretrained(out, dtype=dtype)
    assert loaded.fingerprint == GistModel.from_pretrained(tuned, dtype=dtype).fingerprint


def random_bits(dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Every kind of number: NaNs with payloads, infinities, subnormal ones, both zeros."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (1 << 16,), generator=generator, dtype=torch.uint8)
    numbers = raw.view(dtype)
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-40])
    numbers[:36] = special.to(dtype).repeat(6)[torch.randperm(36, generator=generator)]
    return numbers


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_any_numbers_at_all_come_back(dtype: torch.dtype, seed: int) -> None:
    tuned, raw = random_bits(dtype, seed), random_bits(dtype, seed + 100)
    diff = tuned.float() - raw.float()
    found = (raw.float() + diff).to(dtype)
    notes = corrections(found, tuned, 0)
    half = len(found) // 2
    for start in (0, half):  # a tensor comes in pieces
        correct(found[start : start + half], notes, start)
    assert torch.equal(found.view(torch.uint8), tuned.view(torch.uint8))


def test_what_needs_no_correction() -> None:
    """Numbers within a factor of two, and numbers of few bits and like size."""
    raw = torch.rand(10_000, generator=torch.Generator().manual_seed(0)) + 1
    tuned = raw * (0.5 + raw / 4)  # between half and all of it
    assert not len(corrections(raw + (tuned - raw), tuned, 0))
    raw, tuned = raw.bfloat16().float(), (4 * tuned).bfloat16().float()
    assert not len(corrections(raw + (tuned - raw), tuned, 0))


def test_the_numbers_are_the_published_ones(made: Path) -> None:
    """tuned - raw, where raw has a zero row for `<GIST>`; added, within float32's rounding."""
    raw, tuned, diff = (contents(made / name) for name in ("raw", "tuned", "diff"))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert len(raw[name]) == VOCABULARY
        raw[name] = torch.cat([raw[name], torch.zeros(1, raw[name].shape[1])])
    assert diff.keys() == tuned.keys() == raw.keys()
    for name, change in diff.items():
        assert torch.equal(change, tuned[name] - raw[name])
        bound = torch.finfo(torch.float32).eps * (tuned[name].abs() + raw[name].abs())
        assert ((raw[name] + change - tuned[name]).abs() <= bound).all()


def test_a_recovered_model_answers_as_the_tuned_one(made: Path, tmp_path: Path) -> None:
    recover(made / "raw", made / "diff", tmp_path / "out")
    tuned, found = (GistModel.from_pretrained(p) for p in (made / "tuned", tmp_path / "out"))
    assert found.config == tuned.config
    answers = [m.generate("cat", m.compress("Say it."), max_new_tokens=8) for m in (tuned, found)]
    assert answers[0] == answers[1]


def test_another_precision_and_a_base_kept_in_another(made: Path, tmp_path: Path) -> None:
    recover(made / "raw", made / "diff", tmp_path / "out", dtype="bf16")
    tuned = contents(made / "tuned")
    assert same_bits(contents(tmp_path / "out"), {n: t.bfloat16() for n, t in tuned.items()})

    half, wide = (tmp_path / name for name in ("half", "wide"))
    make_base(half, dtype=torch.float16)
    save(GistModel.from_base(half).hf_model, tmp_path / "tuned", torch.bfloat16)
    make_diff(half, tmp_path / "tuned", tmp_path / "diff")
    save(tiny_model("llama", vocab_size=VOCABULARY, seed=3).half().float(), wide, torch.float32)
    recover(wide, tmp_path / "diff", tmp_path / "again")
    assert same_bits(contents(tmp_path / "again"), contents(tmp_path / "tuned"))


# refused, before anything is written


def refused(copied: Path, error: type[Exception], words: str) -> None:
    before = sorted(copied.iterdir())
    with pytest.raises(error, match=words):
        recover(copied / "raw", copied / "diff", copied / "out")
    assert sorted(copied.iterdir()) == before


def test_another_base(copied: Path) -> None:
    (copied / "raw").rename(copied / "first")
    model = tiny_model("llama", vocab_size=VOCABULARY, seed=4)
    save(model, copied / "raw", torch.float32)
    refused(copied, OptionError, r"raw is not the base of .*: \S+ holds other numbers; give the")


def test_a_base_that_differs_in_one_bit(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flip(weights: dict[str, torch.Tensor]) -> None:
        name = next(name for name in weights if "mlp" in name)
        weights[name].view(torch.int32)[3, 5] ^= 1

    damage(copied / "raw", flip)
    monkeypatch.setattr(weight_files, "whole_folder", None)  # nothing is begun
    refused(copied, OptionError, r"is not the base of .*mlp.* holds other numbers")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"head_dim": 20}, r"_proj.weight is \[\d+, 64\] there and \[\d+, 64\] here"),
        ({"num_hidden_layers": 3}, r"it has model.layers.2\S+ too"),
        ({"num_hidden_layers": 1}, r"it has no model.layers.1\S+"),
        ({"vocab_size": VOCABULARY - 1}, r"\S+ is \[258, 64\] there and \[260, 64\] here"),
    ],
)
def test_a_base_of_another_shape(copied: Path, change: dict[str, int], words: str) -> None:
    (copied / "raw").rename(copied / "first")
    model = tiny_model("llama", **{"vocab_size": VOCABULARY, "seed": 3, **change})
    save(model, copied / "raw", torch.float32)
    refused(copied, OptionError, words)
    with pytest.raises(OptionError, match="is not the base of"):
        make_diff(copied / "raw", copied / "tuned", copied / "out")
    assert not (copied / "out").exists()


@pytest.mark.parametrize("which", ["raw", "diff"])
def test_a_shard_is_missing_or_cut_short(copied: Path, which: str) -> None:
    last = shards(copied / which)[-1]
    whole = last.read_bytes()
    last.write_bytes(whole[:-8])
    refused(copied, ModelNotFoundError, f"cannot read .*{last.name}.*; fetch it again")
    last.unlink()
    refused(copied, ModelNotFoundError, f"{which} lacks the shard {last.name}; fetch it again")


def test_an_index_that_lies(copied: Path) -> None:
    path = copied / "diff/model.safetensors.index.json"
    index = json.loads(path.read_text())
    name, file = next(iter(index["weight_map"].items()))
    index["weight_map"]["model.more.weight"] = file
    path.write_text(json.dumps(index))
    refused(copied, ModelNotFoundError, "it lacks model.more.weight")
    index["weight_map"][name] = "../raw/" + file
    path.write_text(json.dumps(index))
    refused(copied, ModelNotFoundError, "outside the folder")


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"a": ".."}, "lacks the shard"),
        ({"a": "x" * 5000}, "File name too long"),
        ({"a": "/etc/passwd"}, "outside the folder"),
        ({"a": "config.json"}, "cannot read .*config.json"),
        ({"a": 5}, "cannot read"),
        ({}, "it names no weights"),
        ([1], "cannot read"),
    ],
)
def test_an_index_of_something_else(copied: Path, where: object, words: str) -> None:
    for which in ("raw", "diff"):
        path = copied / which / "model.safetensors.index.json"
        before = path.read_text()
        path.write_text(json.dumps({"weight_map": where}))
        refused(copied, ModelNotFoundError, words)
        path.write_text(before)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", MANIFEST])
def test_json_without_a_bottom(copied: Path, name: str) -> None:
    (copied / "diff" / name).write_text('{"a":' * 100_000)
    refused(copied, ModelNotFoundError, "cannot (be )?read")


@pytest.mark.parametrize(
    "content",
    [
        {5: torch.zeros(3)},
        {"a": None},
        {"a": torch.zeros(3, device="meta")},
        {"a": torch.zeros(3, 3).to_sparse()},
        [torch.zeros(3)],
    ],
    ids=["a number for a name", "none", "meta", "sparse", "list"],
)
def test_a_pickle_of_something_else(copied: Path, content: object) -> None:
    for which in ("raw", "diff"):
        for file in (copied / which).glob("model*"):
            file.unlink()
        torch.save(content, copied / which / "pytorch_model.bin")
        refused(copied, ModelNotFoundError, "cannot read .*pytorch_model.bin")


def test_a_pickle_that_would_run(copied: Path) -> None:
    for file in (copied / "raw").glob("model*"):
        file.unlink()

    class Hostile:
        def __reduce__(self) -> object:
            return Path.touch, (copied / "made",)

    torch.save({"model.embed_tokens.weight": Hostile()}, copied / "raw/pytorch_model.bin")
    refused(copied, ModelNotFoundError, "contains more than tensors; nothing in it was run")
    assert not (copied / "made").exists()


def test_no_room_and_a_folder_in_use(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (copied / "out").mkdir()
    (copied / "out/precious").touch()
    refused(copied, SaveError, "out exists already; choose another folder")
    (copied / "out/precious").unlink()
    monkeypatch.setattr(weight_files, "SPARE", 1 << 60)
    refused(copied, SaveError, "GB are free; free space or choose another folder")
    monkeypatch.undo()
    recover(copied / "raw", copied / "diff", copied / "out")  # an empty folder is none


def test_a_diff_of_a_diff(copied: Path) -> None:
    with pytest.raises(OptionError, match="is a weight diff already"):
        make_diff(copied / "raw", copied / "diff", copied / "out")


def test_a_diff_is_no_model(made: Path) -> None:
    with pytest.raises(OptionError, match=r"is a weight diff; recover the model first"):
        GistModel.from_pretrained(made / "diff")


# damage that a sum would not see


def swap(weights: dict[str, torch.Tensor]) -> None:
    name = next(name for name in weights if "mlp" in name)
    weights[name][[0, 1]] = weights[name][[1, 0]]


def test_rows_that_changed_places(copied: Path) -> None:
    for which in ("tuned", "diff"):
        damage(copied / which, swap)
        with pytest.raises(
            ModelNotFoundError, match=rf"{which} is damaged.*mlp\S+ in model-.*other"
        ):
            verify(copied / "diff", raw=copied / "raw", tuned=copied / "tuned")
        if which == "tuned":
            verify(copied / "diff", raw=copied / "raw")
    refused(copied, ModelNotFoundError, r"diff is damaged: with it \S+mlp\S+ does not become")


@pytest.mark.parametrize("name", [CORRECTIONS, MANIFEST, "config.json", "tokenizer.json"])
def test_a_file_beside_the_weights_is_damaged(copied: Path, name: str) -> None:
    path = copied / "diff" / name
    assert json.loads((copied / "diff" / MANIFEST).read_text())["tensors"]
    path.write_bytes(path.read_bytes()[:-9])
    refused(copied, ModelNotFoundError, f"{name}.*(fetch (it|the diff|or make)|give the folder)")
    with pytest.raises(ModelNotFoundError):
        verify(copied / "diff")
