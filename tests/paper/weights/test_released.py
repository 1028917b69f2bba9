"""The released diffs by name, with stand-ins laid out as they are on the hub and in its cache.

The real ones could not be downloaded: what is tested is the way to them, not their numbers.
"""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from gistkit.cli import main
from gistkit.errors import ModelNotFoundError, OptionError
from gistkit.model import GistModel
from gistkit.models.config import GistConfig
from gistkit.models.loading import load_tokenizer
from gistkit.paper import released, weight_diff
from gistkit.paper.base_model import ROTARY
from gistkit.paper.released import RELEASED, Released
from gistkit.paper.weight_diff import recover
from gistkit.paper.weight_files import WeightFiles
from gistkit.testing import tiny_model
from tests.paper.weights.stand_ins import (
    contents,
    copy_tokenizer,
    make_base,
    make_tuned,
    save_as_released,
)

DIFFS = [name for name, release in RELEASED.items() if release.is_diff]
ROWS = 4000  # of the toy tokenizer's vocabulary
NEWER = ("dtype", "torch_dtype", "rope_parameters", "transformers_version")


def state_of_2023(model: PreTrainedModel) -> dict[str, Tensor]:
    """With the rotary buffers, as transformers saved LLaMA then."""
    state = dict(model.state_dict())
    half = int(model.config.head_dim) // 2
    for layer in range(model.config.num_hidden_layers):
        name = f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        state[name] = 1.0 / 10000.0 ** (torch.arange(0, 2 * half, 2).float() / (2 * half))
    return state


def config_of_2023(model: PreTrainedModel) -> dict[str, object]:
    config = model.config.to_dict()
    return {key: value for key, value in config.items() if key not in NEWER}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """`llama-7b`, beside it a cache that holds the released diffs, and `tuned`."""
    folder = tmp_path_factory.mktemp("released")
    options = {"vocab_size": ROWS, "num_attention_heads": 8, "head_dim": 8}
    base = tiny_model("llama", seed=1, **options)
    tuned = tiny_model("llama", seed=2, **{**options, "vocab_size": ROWS + 1})
    save_as_released(folder / "llama-7b", state_of_2023(base), config_of_2023(base))
    copy_tokenizer(shared / "golden/tokenizers/llama_toy_base", folder / "llama-7b")
    save_as_released(folder / "tuned", state_of_2023(tuned), config_of_2023(tuned))
    copy_tokenizer(shared / "golden/tokenizers/llama_toy_gist", folder / "tuned")
    before, after = state_of_2023(base), state_of_2023(tuned)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        before[name] = torch.cat([before[name], torch.zeros(1, before[name].shape[1])])
    difference = {name: after[name] - before[name] for name in after}
    for hub_id in DIFFS:
        repository = folder / "cache" / f"models--{hub_id.replace('/', '--')}"
        snapshot = repository / "snapshots" / ("0" * 40)
        save_as_released(snapshot, difference, config_of_2023(tuned))
        copy_tokenizer(shared / "golden/tokenizers/llama_toy_gist", snapshot)
        (repository / "refs").mkdir()
        (repository / "refs/main").write_text("0" * 40)
    return folder


@pytest.mark.parametrize("hub_id", DIFFS)
def test_the_published_command(
    hub_id: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    command = [
        "compress", "--model_name_or_path", hub_id, "--base_llama_path", "llama-7b",
        "--cache_dir", "cache", "--instruction", "Name the top cities in France.",
        "--max_new_tokens", "6", "--json",
    ]  # fmt: skip
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)

    tuned = GistModel.from_pretrained(place / "tuned")
    gist = tuned.compress("Name the top cities in France.", num_gist_tokens=1)
    assert [found["output"]] == tuned.generate("", gist, max_new_tokens=6)
    model = GistModel.from_pretrained(hub_id, weight_diff_base="llama-7b", cache_dir="cache")
    assert found["fingerprint"] == model.fingerprint  # the same folder
    assert model.config.num_gist_tokens == (1,) and model.config.base_model == "llama-7b"
    assert model.config.conditions == (hub_id.split("-")[2],)
    for name, tensor in model.hf_model.state_dict().items():
        torch.testing.assert_close(tensor, tuned.hf_model.state_dict()[name], atol=1e-6, rtol=0)
    (folder,) = (place / "cache/recovered").glob(f"{hub_id.split('/')[1]}-*")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert main(command) == 0
    assert (folder / "model.safetensors").stat().st_mtime_ns == written  # kept


def test_a_diff_without_its_base(place: Path) -> None:
    with pytest.raises(OptionError, match=r"gist-1 is a weight diff; recover .*`weight_diff_base`"):
        GistModel.from_pretrained(DIFFS[0], cache_dir=str(place / "cache"))


def test_a_whole_model_with_a_base(place: Path) -> None:
    with pytest.raises(OptionError, match="gist-1 is a whole model; leave out `weight_diff_base`"):
        GistModel.from_pretrained(
            "jayelm/flan-t5-xxl-gist-1", weight_diff_base=str(place / "llama-7b")
        )


def test_no_such_diff_or_base(place: Path) -> None:
    for diff, base in [("nobody/nothing", "llama-7b"), (DIFFS[0], "no-llama")]:
        with pytest.raises(ModelNotFoundError, match="no such folder, and no such model"):
            GistModel.from_pretrained(
                diff, weight_diff_base=str(place / base), cache_dir=str(place / "cache")
            )


def test_the_cache_follows_its_files(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    make_tuned(tmp_path / "diff", base)
    cache = str(tmp_path / "cache")
    first = GistModel.from_pretrained(
        tmp_path / "diff", weight_diff_base=str(base), cache_dir=cache
    )
    (base / "tokenizer.json").touch()
    again = GistModel.from_pretrained(
        tmp_path / "diff", weight_diff_base=str(base), cache_dir=cache
    )
    assert len(list((tmp_path / "cache/recovered").iterdir())) == 2
    assert first.fingerprint == again.fingerprint


# the published check: a sum that counts the rotary buffers


@pytest.fixture
def known(place: Path, monkeypatch: pytest.MonkeyPatch) -> float:
    """The stand-in's own sum, in the table."""
    total = sum(float(tensor.double().sum()) for tensor in contents(place / "tuned").values())
    entry = Released(
        config=GistConfig((1,), ("gist",), template="decoder", base_model="llama-7b"),
        shapes={"model.embed_tokens.weight": (ROWS + 1, 64)}, weight_sum=total,
    )  # fmt: skip
    monkeypatch.setattr(released, "RELEASED", {DIFFS[0]: entry})
    return total


def diff_of(place: Path) -> Path:
    return next(place.glob(f"cache/models--{DIFFS[0].replace('/', '--')}/snapshots/*"))


def drop_rotary(folder: Path, target: Path) -> Path:
    save_as_released(
        target,
        {name: tensor for name, tensor in contents(folder).items() if not ROTARY.search(name)},
        json.loads((folder / "config.json").read_text()),
    )
    return target


def test_the_sum_with_rotary_buffers_in_the_files_or_not(
    place: Path, known: float, tmp_path: Path
) -> None:
    base, diff = place / "llama-7b", diff_of(place)
    bare_base = drop_rotary(base, tmp_path / "base")
    bare_diff = drop_rotary(diff, tmp_path / "llama-7b-gist-1")
    for raw, change in [(base, diff), (bare_base, diff), (base, bare_diff), (bare_base, bare_diff)]:
        verdict = weight_diff.verify(change, raw=raw)
        assert verdict.published_sum == known
        assert verdict.weight_sum == pytest.approx(known, abs=1e-3)
    recover(bare_base, diff, tmp_path / "out")
    assert any(ROTARY.search(name) for name in WeightFiles(tmp_path / "out"))
    GistModel.from_pretrained(tmp_path / "out")


def test_a_wrong_sum_is_refused_and_can_be_overruled(
    place: Path, known: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_model("llama", seed=8, vocab_size=ROWS, num_attention_heads=8, head_dim=8)
    save_as_released(tmp_path / "raw", state_of_2023(base), config_of_2023(base))
    command = [
        "weights", "recover", "--path_raw", str(tmp_path / "raw"),
        "--path_diff", str(diff_of(place)), "--path_tuned", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main(command) == 2
    assert f"not to the published {known:.4f}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
    assert main([*command, "--no-check-integrity-naively"]) == 0


def test_the_sum_is_only_for_the_real_ones(place: Path, tmp_path: Path) -> None:
    """The stand-ins have the names, not the shapes."""
    with pytest.raises(OptionError, match="is no released diff; there is nothing to compare"):
        weight_diff.verify(diff_of(place), raw=place / "llama-7b")
    recover(place / "llama-7b", diff_of(place), tmp_path / "out")


def test_the_table_says_what_was_released() -> None:
    conditions = {name: release.config.conditions for name, release in RELEASED.items()}
    assert len(RELEASED) == 6
    assert set(conditions.values()) == {("gist",), ("pos_control",), ("neg_control",)}
    assert {n: r.weight_sum for n, r in RELEASED.items() if r.is_diff} == {
        "jayelm/llama-7b-gist-1": 50547.9570,
        "jayelm/llama-7b-pos_control-1": 50596.9141,
        "jayelm/llama-7b-neg_control-1": 50503.8789,
    }
    assert all((name.split("-")[-2],) == condition for name, condition in conditions.items())
    seven = 32 * float((1 / 10000 ** (torch.arange(0, 128, 2) / 128)).sum())
    assert seven == pytest.approx(238.72, abs=0.01)  # what the rotary buffers are of a 7B's sum


def test_slow_tokenizer_files_are_kept(place: Path, tmp_path: Path) -> None:
    recover(place / "llama-7b", diff_of(place), tmp_path / "out")
    one, other = (load_tokenizer(str(p)) for p in (place / "tuned", tmp_path / "out"))
    text = "Instruction: Say it.\n<GIST> <GIST>\nInput: cat"
    assert one(text)["input_ids"] == other(text)["input_ids"]
