"""Sharded checkpoints become plain gist models; replaces DeepSpeed's `zero_to_fp32.py`.

Shards are pickles. They are read without running what they contain: tensors by torch's weights-only
reader, and of classes only those named here, DeepSpeed's as empty stand-ins. DeepSpeed need not be
installed.
"""

import pickle
import shutil
import warnings
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from gistkit.errors import ModelNotFoundError, OptionError
from gistkit.model import GistModel
from gistkit.models import loading
from gistkit.models.config import GistConfig

Weights = dict[str, Tensor]
PLAIN = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
LATEST = "latest"
DCP_INDEX = ".metadata"

DEEPSPEED_CLASSES = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
)
"""What ZeRO-3 shards of DeepSpeed 0.19 refer to beside tensors and plain values."""

DCP_CLASSES = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    )
} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("collections", "OrderedDict"),
}  # fmt: skip
"""What the index of a distributed checkpoint refers to, beside dtypes."""


def consolidate(checkpoint: Path, out: Path, *, dtype: str | None = None) -> Path:
    """Read a sharded checkpoint and write it to `out` as a model that `from_pretrained` loads.

    Args:
        checkpoint: a folder of the trainer: shards of DeepSpeed ZeRO-3 (`global_step*/`) or of
            FSDP (`pytorch_model_fsdp_0/`), beside `config.json` and the tokenizer.
        out: the folder to write; may be `checkpoint` itself.
        dtype: of the weights written; default: as they are stored (DeepSpeed: float32).

    Raises:
        ModelNotFoundError: there are no shards, they are damaged, or they belong to another model.
        OptionError: the checkpoint is not sharded; an unknown dtype.
        SaveError: `out` cannot be written.
    """
    wanted = None if dtype is None else loading.parse_dtype(dtype)
    shards = find_shards(checkpoint) if checkpoint.is_dir() else None
    if shards is None:
        if any((checkpoint / name).is_file() for name in PLAIN):
            raise OptionError(f"{checkpoint} is not in shards: load it directly")
        raise ModelNotFoundError(
            f"there is no checkpoint in shards at {checkpoint}; give a checkpoint-N folder of a "
            "DeepSpeed ZeRO-3 or FSDP run"
        )
    home = checkpoint if (checkpoint / "config.json").is_file() else checkpoint.parent
    model = _build_model(home, read_shards(shards))
    if wanted is not None:
        hf_model: Any = model.hf_model
        hf_model.to(wanted)
    return model.save_pretrained(out)


def make_plain(folder: Path) -> None:
    """Replace the shards in a model folder by the whole model; a plain folder is left unchanged.

    Raises: as `consolidate`; the shards are then still there.
    """
    shards = find_shards(folder)
    if shards is None or shards == folder:
        return
    consolidate(folder, folder)
    shutil.rmtree(shards)
    for name in (LATEST, "zero_to_fp32.py", "zero_to_torch.py"):
        (folder / name).unlink(missing_ok=True)


def _build_model(folder: Path, weights: Weights) -> GistModel:
    """The gist model that `folder` describes, with these weights; only good for saving."""
    path = str(folder)
    config = loading.load_config(path)
    with torch.device("meta"):  # no memory, no random numbers
        hf_model = loading.auto_class(config).from_config(config)
    names = set(hf_model.state_dict())
    hf_model.load_state_dict(_renamed(weights, names, path), strict=False, assign=True)
    hf_model.tie_weights()
    if missing := sorted(name for name, p in hf_model.named_parameters() if p.is_meta):
        raise ModelNotFoundError(
            f"the shards of {path} lack {missing[0]}; give a complete checkpoint"
        )
    gist_config = loading.load_gist_config(path) or GistConfig()
    return GistModel(hf_model, loading.load_tokenizer(path), gist_config)


def _renamed(weights: Weights, known: set[str], path: str) -> Weights:
    """The weights under the model's own names, without the prefix of a wrapper."""
    for prefix in ("", "module.", "model."):
        named = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
        if named.keys() <= known:
            return named
    raise ModelNotFoundError(
        f"the shards of {path} contain {min(weights.keys() - known)}, which is not part of the "
        "model that its config.json describes"
    )


def find_shards(folder: Path) -> Path | None:
    """The folder that holds the shards of a checkpoint: itself, or one of its subfolders."""
    latest = folder / LATEST
    if latest.is_file():
        return folder / Path(latest.read_text(encoding="utf-8").strip()).name
    subfolders = [*sorted(folder.glob("pytorch_model_fsdp_*")), *sorted(folder.glob("model*"))]
    for candidate in (folder, *subfolders):
        if (candidate / DCP_INDEX).is_file() or any(candidate.glob("*_optim_states.pt")):
            return candidate
    return None


def read_shards(folder: Path) -> Weights:
    """All weights, whole; those of DeepSpeed are its float32 master copy."""
    try:
        if (folder / DCP_INDEX).is_file():
            return _read_dcp(folder)
        with torch.serialization.safe_globals([(_StandIn, name) for name in DEEPSPEED_CLASSES]):
            return _read_deepspeed(folder)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelNotFoundError(
            f"cannot read the shards in {folder}: {reason}; give a complete checkpoint"
        ) from error


class _StandIn:
    """Replaces a DeepSpeed object; takes any state and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _read_deepspeed(folder: Path) -> Weights:
    """ZeRO-3 cuts each parameter into one equal part per rank, the last one padded.

    A rank's parts are concatenated in the order of `param_shapes`.
    """
    models = sorted(folder.glob("zero_pp_rank_*_mp_rank_00_model_states.pt"), key=_rank)
    optims = sorted(folder.glob("*zero_pp_rank_*_mp_rank_00_optim_states.pt"), key=_rank)
    if not models or not optims:
        raise ValueError("no ZeRO-3 shards there (*_model_states.pt and *_optim_states.pt)")
    first = _load(models[0])
    flat = [_flatten(_load(path)["optimizer_state_dict"], len(optims)) for path in optims]
    weights: Weights = {
        name: first["module"][name] for name in first["buffer_names"] if name in first["module"]
    }
    if frozen := first.get("frozen_param_shapes") or {}:
        parts = [_load(path)["frozen_param_fragments"] for path in models]
        for name, shape in frozen.items():
            weights[name] = _join([part[name].flatten() for part in parts], shape)
    offset = 0
    for name, shape in (item for group in first["param_shapes"] for item in group.items()):
        size = ceil(torch.Size(shape).numel() / len(flat))
        weights[name] = _join([rank[offset : offset + size] for rank in flat], shape)
        offset += size
    if offset > len(flat[0]):
        raise ValueError(f"{len(flat[0])} numbers a shard, but {offset} are needed")
    for name, same in dict(first["shared_params"]).items():
        if same in weights:
            weights[name] = weights[same]
    return weights


def _flatten(state: Mapping[str, Any], ranks: int) -> Tensor:
    """A rank's numbers, one parameter's part after another's."""
    if int(state.get("partition_count", ranks)) != ranks or "fp32_flat_groups" not in state:
        raise ValueError(f"{ranks} shards of {state.get('partition_count')} ZeRO-3 shards")
    groups: Sequence[Tensor] = state["fp32_flat_groups"]
    return torch.cat([group.flatten() for group in groups])


def _join(parts: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    size = torch.Size(shape)
    return torch.cat(list(parts))[: size.numel()].reshape(size).clone()


def _load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return loaded


def _rank(path: Path) -> int:
    return int(path.name.split("pp_rank_")[1].split("_")[0])


def _read_dcp(folder: Path) -> Weights:
    reader = _SafeReader(folder)
    known = reader.read_metadata().state_dict_metadata
    state: Weights = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in known.items()
        if isinstance(entry, TensorStorageMetadata) and not name.startswith("optimizer.")
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that there is only one process
        load(dict(state), storage_reader=reader, no_dist=True)
    return state


class _SafeReader(FileSystemReader):
    """torch's reader of tensors, which are weights-only; the index is read by `_IndexUnpickler`."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / DCP_INDEX).open("rb") as file:
            metadata = _IndexUnpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError("the index is none of torch's")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _IndexUnpickler(pickle.Unpickler):
    """Reads the index of a distributed checkpoint: its own classes and dtypes, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if (module, name) not in DCP_CLASSES and not is_dtype:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in an index")
        return super().find_class(module, name)
