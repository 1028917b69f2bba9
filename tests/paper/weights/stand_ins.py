"""Tiny bases and tuned models on disk, laid out as today and as the released ones are."""

import json
import shutil
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gistkit.model import GistModel
from gistkit.paper.weight_files import WeightFiles
from gistkit.testing import VOCABULARY, byte_tokenizer, tiny_gist_model, tiny_model

SMALL = 40_000
"""Bytes of a shard: several for a tiny model."""


def save(model: PreTrainedModel, folder: Path, dtype: torch.dtype, shard: int = SMALL) -> Path:
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(dtype).save_pretrained(folder, max_shard_size=shard)  # type: ignore[arg-type]
    return folder


def make_base(folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32) -> Path:
    rows = {"vocab_size": VOCABULARY} if family != "t5" else {}  # T5: padded beyond its tokenizer
    save(tiny_model(family, seed=3, **rows), folder, dtype, shard=2 * SMALL)
    byte_tokenizer(closing=family == "t5").save_pretrained(folder)
    return folder


def make_tuned(
    folder: Path, base: Path, family: str = "llama", dtype: torch.dtype = torch.float32
) -> GistModel:
    """The base with `<GIST>`, every weight moved a little in several steps."""
    model = GistModel.from_base(base, num_gist_tokens=(1, 2))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in product(range(4), model.hf_model.parameters()):
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    save(model.hf_model, folder, dtype)
    return model


def make_unrelated(
    folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32
) -> GistModel:
    model = tiny_gist_model(family, seed=9)
    model.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    save(model.hf_model, folder, dtype)
    return model


def contents(folder: Path) -> dict[str, Tensor]:
    files = WeightFiles(folder)
    return {
        name: torch.cat([files.read(name, *block) for block in entry.blocks()])
        for name, entry in files.items()
    }


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    def equal(a: Tensor, b: Tensor) -> bool:
        return a.dtype == b.dtype and bool(torch.equal(a.view(torch.uint8), b.view(torch.uint8)))

    return one.keys() == other.keys() and all(equal(one[n], other[n]) for n in one)


def save_as_released(folder: Path, state: dict[str, Tensor], config: dict[str, object]) -> None:
    """`pytorch_model-0000i-of-00002.bin` and their index, as transformers wrote them in 2023."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(state)
    half = len(names) // 2
    shards = {1: names[:half], 2: names[half:]}
    where = {}
    for number, part in shards.items():
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save({name: state[name].clone() for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))


def copy_tokenizer(source: Path, folder: Path) -> None:
    for file in source.iterdir():
        shutil.copyfile(file, folder / file.name)
