"""Weights in shards, as DeepSpeed ZeRO-3 and torch's distributed checkpoints write them.

Both are pickles. They are read without running what they hold: tensors by torch's weights-only
reader, and of classes only those named here, DeepSpeed's as empty stand-ins. DeepSpeed itself is
not needed.

DeepSpeed cuts each parameter into as many equal parts as there are ranks, the last one padded, and
strings the parts of a rank together in the order of `param_shapes`.
"""

import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from gistkit.errors import ModelNotFoundError

Weights = dict[str, Tensor]
LATEST = "latest"
DCP_INDEX = ".metadata"


class _StandIn:
    """In the place of a DeepSpeed object; takes any state and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


DEEPSPEED = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
)
"""What ZeRO-3 shards of DeepSpeed 0.19 name beside tensors and plain values."""

DCP = {
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


def find_shards(folder: Path) -> Path | None:
    """The folder that holds the shards of a checkpoint: its own, or one of its folders."""
    latest = folder / LATEST
    if latest.is_file():
        return folder / Path(latest.read_text(encoding="utf-8").strip()).name
    places = [folder, *sorted(folder.glob("pytorch_model_fsdp_*")), *sorted(folder.glob("model*"))]
    for place in places:
        if (place / DCP_INDEX).is_file() or any(place.glob("*_optim_states.pt")):
            return place
    return None


def read_shards(folder: Path) -> Weights:
    """All weights, whole; those of DeepSpeed are its float32 master copy.

    Raises:
        ModelNotFoundError: a shard is missing or damaged, or holds what is not allowed.
    """
    try:
        if (folder / DCP_INDEX).is_file():
            return _read_dcp(folder)
        return _read_deepspeed(folder)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelNotFoundError(
            f"cannot read the shards in {folder}: {reason}; give a whole checkpoint"
        ) from error


@contextmanager
def _known_names() -> Iterator[None]:
    with torch.serialization.safe_globals([(_StandIn, name) for name in DEEPSPEED]):
        yield


def _read_deepspeed(folder: Path) -> Weights:
    models = sorted(folder.glob("zero_pp_rank_*_mp_rank_00_model_states.pt"), key=_rank)
    optims = sorted(folder.glob("*zero_pp_rank_*_mp_rank_00_optim_states.pt"), key=_rank)
    if not models or not optims:
        raise ValueError("no ZeRO-3 shards there (*_model_states.pt and *_optim_states.pt)")
    with _known_names():
        first = _load(models[0])
        flat = [_flat(_load(path)["optimizer_state_dict"], len(optims)) for path in optims]
        frozen = first.get("frozen_param_shapes") or {}
        parts = [first["frozen_param_fragments"]] if frozen else []
        if frozen:
            parts += [_load(path)["frozen_param_fragments"] for path in models[1:]]
    weights: Weights = {
        name: first["module"][name] for name in first["buffer_names"] if name in first["module"]
    }
    for name, shape in frozen.items():
        weights[name] = _join([part[name].flatten() for part in parts], shape)
    at = 0
    for name, shape in (item for group in first["param_shapes"] for item in group.items()):
        size = ceil(torch.Size(shape).numel() / len(flat))
        weights[name] = _join([rank[at : at + size] for rank in flat], shape)
        at += size
    if at > len(flat[0]):
        raise ValueError(f"{len(flat[0])} numbers a shard, but {at} are needed")
    for name, same in dict(first["shared_params"]).items():
        if same in weights:
            weights[name] = weights[same]
    return weights


def _flat(state: Mapping[str, Any], ranks: int) -> Tensor:
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


class _IndexUnpickler(pickle.Unpickler):
    """Reads the index of a distributed checkpoint: its own classes, dtypes, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        found = (module, name) in DCP
        if not found and module == "torch":
            found = isinstance(getattr(torch, name, None), torch.dtype)
        if not found:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in an index")
        return super().find_class(module, name)


class _SafeReader(FileSystemReader):
    """torch's reader, whose index is read by `_IndexUnpickler`; it reads tensors weights-only."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / DCP_INDEX).open("rb") as file:
            metadata = _index(file)
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def _index(file: BinaryIO) -> Metadata:
    metadata = _IndexUnpickler(file).load()
    if not isinstance(metadata, Metadata):
        raise pickle.UnpicklingError("the index is none of torch's")
    return metadata


def _read_dcp(folder: Path) -> Weights:
    reader = _SafeReader(folder)
    known = reader.read_metadata().state_dict_metadata
    state: Weights = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in known.items()
        if isinstance(entry, TensorStorageMetadata) and not name.startswith("optimizer.")
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it is one process, which it is
        load(dict(state), storage_reader=reader, no_dist=True)
    return state
