"""Shards become a plain model; what does not belong in them is refused."""

import json
import pickle
import sys
from collections.abc import Mapping
from math import ceil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict_saver import save

from gistkit.cli import main
from gistkit.errors import ModelNotFoundError, OptionError
from gistkit.model import GistModel
from gistkit.testing import tiny_gist_model
from gistkit.training.shards import consolidate, find_shards, make_plain, read_shards

FAMILIES = ["llama", "t5"]
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def unweighted(folder: Path, family: str) -> GistModel:
    """Everything of a model in `folder` but its weights, as the trainer leaves it beside shards."""
    model = tiny_gist_model(family)
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    return model


def write_dcp(folder: Path, state: Mapping[str, Any]) -> None:
    save(dict(state), checkpoint_id=folder, no_dist=True)


def write_zero3(folder: Path, model: GistModel, ranks: int, stage: Any = 3) -> None:
    """The layout of DeepSpeed 0.19: equal parts of each parameter, the last one padded."""
    (folder / "latest").write_text("global_step7")
    shards = folder / "global_step7"
    shards.mkdir()
    shapes = {name: p.shape for name, p in model.hf_model.named_parameters()}
    flat: list[list[Tensor]] = [[] for _ in range(ranks)]
    for parameter in model.hf_model.parameters():
        size = ceil(parameter.numel() / ranks)
        padded = torch.zeros(size * ranks)
        padded[: parameter.numel()] = parameter.detach().flatten()
        for rank, part in enumerate(padded.split(size)):
            flat[rank].append(part)
    for rank in range(ranks):
        states = {
            "module": {},
            "buffer_names": [],
            "param_shapes": [shapes],
            "frozen_param_shapes": None,
            "frozen_param_fragments": None,
            "shared_params": {},
        }
        optimizer = {
            "zero_stage": stage,
            "partition_count": ranks,
            "fp32_flat_groups": [torch.cat(flat[rank])],
        }
        name = f"zero_pp_rank_{rank}_mp_rank_00"
        torch.save(states, shards / f"{name}_model_states.pt")
        torch.save({"optimizer_state_dict": optimizer}, shards / f"{name}_optim_states.pt")


def same(folder: Path, model: GistModel) -> bool:
    return GistModel.from_pretrained(folder).fingerprint == model.fingerprint


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wrapped", [True, False])
def test_shards_of_torch(family: str, wrapped: bool, tmp_path: Path) -> None:
    model = unweighted(tmp_path / "in", family)
    state = model.hf_model.state_dict()
    write_dcp(tmp_path / "in/pytorch_model_fsdp_0", {"model": state} if wrapped else state)
    assert consolidate(tmp_path / "in", tmp_path / "out") == tmp_path / "out"
    assert same(tmp_path / "out", model)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ranks", [1, 3])
def test_shards_of_deepspeed(family: str, ranks: int, tmp_path: Path) -> None:
    model = unweighted(tmp_path, family)
    write_zero3(tmp_path, model, ranks)
    make_plain(tmp_path)
    assert same(tmp_path, model)
    assert find_shards(tmp_path) is None
    make_plain(tmp_path)  # plain already: left alone


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_zero3(tmp_path, unweighted(tmp_path, "llama"), 2)
    out = str(tmp_path / "out")
    command = ["checkpoint", "consolidate", str(tmp_path), "--out", out]
    assert main([*command, "--precision", "bf16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == out
    assert GistModel.from_pretrained(out, dtype="bf16").hf_model.dtype == torch.bfloat16
    assert main(["checkpoint", "consolidate", out, "--out", out]) == 2
    assert "is not in shards" in capsys.readouterr().err


def test_a_plain_checkpoint_and_none_at_all(tmp_path: Path) -> None:
    tiny_gist_model("llama").save_pretrained(tmp_path / "plain")
    with pytest.raises(OptionError, match="is not in shards"):
        consolidate(tmp_path / "plain", tmp_path / "out")
    with pytest.raises(ModelNotFoundError, match="no checkpoint in shards"):
        consolidate(tmp_path / "none", tmp_path / "out")


def test_a_shard_is_missing_or_cut_short(tmp_path: Path) -> None:
    write_zero3(tmp_path, unweighted(tmp_path, "llama"), 2)
    last = tmp_path / "global_step7/zero_pp_rank_1_mp_rank_00_optim_states.pt"
    whole = last.read_bytes()
    last.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelNotFoundError, match="cannot read the shards"):
        consolidate(tmp_path, tmp_path / "out")
    last.unlink()
    with pytest.raises(ModelNotFoundError, match="1 shards of 2"):
        consolidate(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shards_of_another_model(tmp_path: Path) -> None:
    unweighted(tmp_path, "t5")
    write_zero3(tmp_path, tiny_gist_model("llama"), 2)
    with pytest.raises(ModelNotFoundError, match="not part of the model"):
        consolidate(tmp_path, tmp_path / "out")


class Hostile:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_in_a_shard_is_run(tmp_path: Path) -> None:
    write_zero3(tmp_path, unweighted(tmp_path, "llama"), 1, stage=Hostile(tmp_path / "made"))
    with pytest.raises(ModelNotFoundError, match="cannot read the shards"):
        consolidate(tmp_path, tmp_path / "out")
    write_dcp(tmp_path / "dcp", {"weight": torch.ones(2)})
    (tmp_path / "dcp/.metadata").write_bytes(pickle.dumps(Hostile(tmp_path / "made")))
    with pytest.raises(ModelNotFoundError, match="is not allowed in an index"):
        read_shards(tmp_path / "dcp")
    assert not (tmp_path / "made").exists()


def test_objects_of_deepspeed_are_read_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "deepspeed.runtime.zero.config"
    module = ModuleType(name)
    stage = type("ZeroStageEnum", (), {"__module__": name, "__init__": lambda self, *_: None})
    module.ZeroStageEnum = stage  # type: ignore[attr-defined]
    model = unweighted(tmp_path, "llama")
    with monkeypatch.context() as patch:
        for part in ("deepspeed", "deepspeed.runtime", "deepspeed.runtime.zero"):
            patch.setitem(sys.modules, part, ModuleType(part))
        patch.setitem(sys.modules, name, module)
        write_zero3(tmp_path, model, 2, stage=stage(3))
    consolidate(tmp_path, tmp_path / "out")
    assert same(tmp_path / "out", model)
