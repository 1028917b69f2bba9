"""The weights of a model's folder, read a few rows at a time.

Safetensors or the older `pytorch_model.bin`, in one file or in shards. A `.bin` is a pickle: torch
reads the tensors in it and refuses everything else.
"""

import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gistkit.errors import ModelNotFoundError, OptionError

BLOCK = 1 << 20
"""Numbers in memory at once, of each tensor that takes part."""

READS = 4
"""Blocks read of a file until it is opened anew; what was read of it until then stays mapped."""

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LAYOUTS = (SINGLE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
UNREADABLE = (
    OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError,
    KeyError, TypeError, AttributeError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor is, and what it looks like."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Its rows in pieces of about `BLOCK` numbers; a scalar is one row."""
        rows = self.shape[0] if self.shape else 1
        step = max(1, BLOCK // max(1, prod(self.shape[1:])))
        for start in range(0, max(1, rows), step):
            yield start, min(start + step, rows)


class WeightFiles(Mapping[str, Entry]):
    """Names and shapes of all tensors in a folder; `read` fetches rows.

    Raises:
        ModelNotFoundError: no weights there, a shard is missing, damaged, or holds other tensors
            than its index says.
        OptionError: weights that are neither float32, bfloat16 nor float16.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries: dict[str, Entry] = {}
        self._opened: tuple[str, Any] | None = None
        self._reads = 0
        for file, names in _listed(folder).items():
            found = _entries(file)
            if names is not None and (lacking := sorted(names - found.keys())):
                raise damaged(file, f"it lacks {lacking[0]}")
            self._entries |= found

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) as they are stored, not to be changed (raises ModelNotFoundError)."""
        entry = self[name]
        try:
            return self._rows(entry, name, start, stop)
        except UNREADABLE as error:
            raise damaged(entry.file, error) from error

    def _rows(self, entry: Entry, name: str, start: int, stop: int) -> Tensor:
        if self._opened is None or self._opened[0] != name or self._reads >= READS:
            self._opened = None  # gives back the pages read before
            self._opened = (name, _open(entry.file))
            self._reads = 0
        self._reads += 1
        source = self._opened[1]
        if isinstance(source, dict):
            tensor: Tensor = source[name]
            return tensor[start:stop].contiguous() if entry.shape else tensor.reshape(1)
        if not entry.shape:
            scalar: Tensor = source.get_tensor(name)
            return scalar.reshape(1)
        rows: Tensor = source.get_slice(name)[start:stop]
        return rows


def _listed(folder: Path) -> dict[Path, set[str] | None]:
    """The files of weights in a folder, and the names an index says they hold."""
    layout = next((name for name in LAYOUTS if (folder / name).is_file()), None)
    if layout is None:
        raise ModelNotFoundError(
            f"there are no weights in {folder} ({SINGLE} or pytorch_model.bin, or the index of "
            "their shards); give the folder of a whole model"
        )
    if not layout.endswith(".json"):
        return {folder / layout: None}
    files: dict[Path, set[str] | None] = {}
    try:
        for name, file in json.loads((folder / layout).read_text("utf-8"))["weight_map"].items():
            if Path(file).name != file:
                raise ValueError(f"it names {file!r}, outside the folder")
            names = files.setdefault(folder / file, set())
            assert names is not None
            names.add(name)
        missing = next((path for path in files if not path.is_file()), None)
    except UNREADABLE as error:
        raise damaged(folder / layout, error) from error
    if missing is not None:
        raise ModelNotFoundError(f"{folder} lacks the shard {missing.name}; fetch it again")
    if not files:
        raise damaged(folder / layout, "it names no weights")
    return files


def _entries(file: Path) -> dict[str, Entry]:
    try:
        source = _open(file)
        entries = {}
        for name in source if isinstance(source, dict) else source.keys():
            if isinstance(source, dict):
                tensor = source[name]
                if not (isinstance(name, str) and isinstance(tensor, Tensor)):
                    raise ValueError(f"it holds {name!r}, which is no tensor")
                if tensor.device.type != "cpu" or tensor.layout != torch.strided:
                    raise ValueError(f"{name} has no numbers, or not all")  # meta, sparse
                shape = tuple(tensor.shape)
                dtype: torch.dtype | None = tensor.dtype
            else:
                piece = source.get_slice(name)
                shape, dtype = tuple(piece.get_shape()), DTYPES.get(piece.get_dtype())
            if dtype is None or dtype not in DTYPES.values():
                raise OptionError(
                    f"{name} in {file} is no float32, bfloat16 or float16 tensor; weight diffs are "
                    "made of those alone"
                )
            entries[name] = Entry(file, shape, dtype)
    except OptionError:
        raise
    except UNREADABLE as error:
        raise damaged(file, error) from error
    return entries


def _open(file: Path) -> Any:
    """A handle of safetensors, or the dict of a `.bin` with its tensors left on disk."""
    if file.suffix == ".safetensors":
        return safe_open(file, framework="pt")
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(file, map_location="cpu", weights_only=True)  # of before torch 1.6


def damaged(file: Path, error: object) -> ModelNotFoundError:
    """The error for a file that cannot be read."""
    reason = " ".join(str(error).split())[:200] or repr(error)
    if isinstance(error, pickle.UnpicklingError):  # torch would tell how to run it all the same
        reason = "it is damaged, or holds something else than tensors; nothing in it was run"
    return ModelNotFoundError(f"cannot read {file}: {reason}; fetch it again")
