"""A checkpoint in shards becomes a plain gist model; replaces DeepSpeed's `zero_to_fp32.py`."""

import shutil
from pathlib import Path
from typing import Any

import torch

from gistkit.checkpoints.shards import LATEST, Weights, find_shards, read_shards
from gistkit.errors import ModelNotFoundError, OptionError
from gistkit.model import GistModel
from gistkit.models import loading
from gistkit.models.config import GistConfig

PLAIN = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")


def consolidate(checkpoint: Path, out: Path, *, dtype: str | None = None) -> Path:
    """Read a checkpoint in shards and write it to `out` as a model `from_pretrained` loads.

    Args:
        checkpoint: a folder of the trainer: shards of DeepSpeed ZeRO-3 (`global_step*/`) or of
            FSDP (`pytorch_model_fsdp_0/`), beside `config.json` and the tokenizer.
        out: the folder to write; may be `checkpoint` itself.
        dtype: of the weights written; default: as they are stored (DeepSpeed: float32).

    Returns:
        `out`.

    Raises:
        ModelNotFoundError: no shards there, or they are damaged, or not those of the model.
        OptionError: the checkpoint is a plain one already; an unknown precision.
        SaveError: `out` cannot be written.
    """
    wanted = None if dtype is None else loading.parse_dtype(dtype)
    shards = find_shards(checkpoint) if checkpoint.is_dir() else None
    if shards is None:
        if any((checkpoint / name).is_file() for name in PLAIN):
            raise OptionError(f"{checkpoint} is not in shards: load it as it is")
        raise ModelNotFoundError(
            f"there is no checkpoint in shards at {checkpoint}; give a checkpoint-N folder of a "
            "DeepSpeed ZeRO-3 or FSDP run"
        )
    home = checkpoint if (checkpoint / "config.json").is_file() else checkpoint.parent
    model = _model(home, read_shards(shards))
    if wanted is not None:
        hf_model: Any = model.hf_model
        hf_model.to(wanted)
    return model.save_pretrained(out)


def make_plain(folder: Path) -> None:
    """Replace the shards in a model folder by the whole model; a plain folder stays as it is.

    Raises: as `consolidate`; then the shards are still there.
    """
    shards = find_shards(folder)
    if shards is None or shards == folder:
        return
    consolidate(folder, folder)
    shutil.rmtree(shards)
    for name in (LATEST, "zero_to_fp32.py", "zero_to_torch.py"):
        (folder / name).unlink(missing_ok=True)


def _model(folder: Path, weights: Weights) -> GistModel:
    """The gist model that `folder` describes, with these weights; only good for saving."""
    path = str(folder)
    config = loading.load_config(path)
    with torch.device("meta"):  # no memory, no random numbers
        hf_model = loading.auto_class(config).from_config(config)
    hf_model.load_state_dict(
        _named_as_in(set(hf_model.state_dict()), weights, path), strict=False, assign=True
    )
    hf_model.tie_weights()
    if missing := sorted(name for name, p in hf_model.named_parameters() if p.is_meta):
        raise ModelNotFoundError(f"the shards of {path} lack {missing[0]}; give a whole checkpoint")
    gist_config = loading.load_gist_config(path) or GistConfig()
    return GistModel(hf_model, loading.load_tokenizer(path), gist_config)


def _named_as_in(known: set[str], weights: Weights, path: str) -> Weights:
    """The weights under the model's own names; those who save put others before them."""
    for prefix in ("", "module.", "model."):
        named = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
        if named.keys() <= known:
            return named
    strange = min(weights.keys() - known)
    raise ModelNotFoundError(
        f"the shards of {path} hold {strange}, which is no part of the model that its config.json "
        "describes"
    )
