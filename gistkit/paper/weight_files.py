"""The weights of a model's folder, read and written a few rows at a time.

Read: safetensors or the older `pytorch_model.bin`, in one file or in shards. A `.bin` is a pickle:
torch reads the tensors in it and refuses everything else. Written: safetensors, in a folder that
appears complete or not at all.
"""

import json
import os
import pickle
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gistkit.errors import GistkitError, ModelNotFoundError, OptionError, SaveError

BLOCK = 1 << 20
"""Numbers of a tensor that are in memory at once."""

READS = 4
"""Blocks read of a file until it is reopened; until then what was read stays mapped."""

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LAYOUTS = (SINGLE, INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
UNREADABLE = (
    OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError,
    KeyError, TypeError, AttributeError,
)  # fmt: skip

SHARD = 5 << 30
"""Bytes of a shard, but for a tensor that is larger."""

SPARE = 64 << 20
"""Bytes that must stay free on the disk: for corrections, tokenizer, other programs."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()} | {torch.int64: "I64"}
_ENTRY = 200  # bytes that an entry of the header takes beside its name, at most


@dataclass(frozen=True, slots=True)
class Entry:
    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Its rows in blocks of about `BLOCK` numbers; a scalar is one row."""
        rows = self.shape[0] if self.shape else 1
        step = max(1, BLOCK // max(1, prod(self.shape[1:])))
        for start in range(0, max(1, rows), step):
            yield start, min(start + step, rows)


class WeightFiles(Mapping[str, Entry]):
    """Names and shapes of all tensors in a folder; `read` fetches rows.

    Raises ModelNotFoundError if weights are missing, damaged or not those of the index, OptionError
    if they are neither float32, bfloat16 nor float16.
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
            if self._opened is None or self._opened[0] != name or self._reads >= READS:
                self._opened = None  # gives back the pages read before
                self._opened = (name, _open(entry.file))
                self._reads = 0
            self._reads += 1
            source = self._opened[1]
            pickled = isinstance(source, dict)
            if not entry.shape:
                scalar: Tensor = source[name] if pickled else source.get_tensor(name)
                return scalar.reshape(1)
            rows: Tensor = (source[name] if pickled else source.get_slice(name))[start:stop]
            return rows.contiguous()
        except UNREADABLE as error:
            raise damaged(entry.file, error) from error


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
                    raise ValueError(f"it contains {name!r}, which is not a tensor")
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
    reason = " ".join(str(error).split())[:200] or repr(error)
    if isinstance(error, pickle.UnpicklingError):  # torch's message says how to run it anyway
        reason = "it is damaged, or contains more than tensors; nothing in it was run"
    return ModelNotFoundError(f"cannot read {file}: {reason}; fetch it again")


class TensorFile:
    """A safetensors file to which rows of the tensors `names` are appended.

    The header comes first in the format but is known last, so room is left for it.
    """

    def __init__(self, file: BinaryIO, names: Iterable[str]) -> None:
        self._file = file
        self._room = sum(_ENTRY + len(json.dumps(name)) for name in names) + _ENTRY
        self._room += -self._room % 8
        self._entries: dict[str, tuple[str, list[int], int, int]] = {}
        self._end = 0
        file.write(bytes(8 + self._room))

    def append(self, name: str, rows: Tensor, *, scalar: bool = False) -> None:
        """Add rows to the tensor `name`; all rows of a tensor come one after the other."""
        dtype, shape, start, end = self._entries.get(
            name, (_NAMES[rows.dtype], [0, *rows.shape[1:]], self._end, self._end)
        )
        assert end == self._end, f"rows of {name} lie apart"
        data = rows.contiguous().view(torch.uint8).numpy()
        self._file.write(data.data)
        self._end += data.nbytes
        grown = [] if scalar else [shape[0] + len(rows), *shape[1:]]
        self._entries[name] = (dtype, grown, start, self._end)

    def close(self) -> None:
        """Write the header; the caller closes the file."""
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        for name, (dtype, shape, start, end) in self._entries.items():
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        assert len(text) <= self._room
        self._file.seek(0)
        self._file.write(struct.pack("<Q", self._room) + text.ljust(self._room))


@contextmanager
def tensor_file(path: Path, names: Iterable[str]) -> Iterator[TensorFile]:
    """A `TensorFile` that is complete and on the disk at the end of the block."""
    with path.open("wb") as file:
        tensors = TensorFile(file, names)
        yield tensors
        tensors.close()
        file.flush()
        os.fsync(file.fileno())


Shape = tuple[tuple[int, ...], torch.dtype]


def in_shards(tensors: Mapping[str, Shape], *, limit: int) -> StateDictSplit:
    """Which tensors go into which file, with names as transformers gives them.

    Wide numbers come first: the format leaves no gaps, and they must be aligned.
    """
    ordered = sorted(tensors.items(), key=lambda item: -item[1][1].itemsize)
    return split_state_dict_into_shards_factory(
        dict(ordered),
        get_storage_size=lambda shape: prod(shape[0]) * shape[1].itemsize,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=limit,
    )


def write_index(folder: Path, shards: StateDictSplit) -> None:
    if shards.is_sharded:
        weight_map = dict(sorted(shards.tensor_to_filename.items()))
        index = {"metadata": shards.metadata, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def check_room(out: Path, size: int) -> None:
    """Refuse a folder that holds files or has no room for `size` bytes (raises SaveError)."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SaveError(f"{out} exists already; choose another folder, or remove it")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if (free := shutil.disk_usage(parent).free) < size + SPARE:
        raise SaveError(
            f"{out} needs {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; free space or "
            "choose another folder"
        )


@contextmanager
def whole_folder(out: Path, size: int) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` at the end of the block, in one step.

    Remains of a killed process are removed by the next one; concurrent writers wait. Raises
    SaveError if `out` is not empty, the disk has no room for `size` bytes, or writing failed.
    """
    partial = out.parent / f".{out.name}.partial"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = _make_locked(partial)
        try:
            check_room(out, size)
            yield partial
            partial.replace(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)
    except GistkitError:  # some are OSErrors
        raise
    except OSError as error:
        raise SaveError(
            f"could not write {out}: {error.strerror or error}; free space or choose another folder"
        ) from error


def _make_locked(partial: Path) -> int:
    """Make an empty folder and lock it, so that other processes wait; returns the lock."""
    import fcntl  # POSIX only

    while True:
        partial.mkdir(exist_ok=True)
        try:
            lock = os.open(partial, os.O_RDONLY)
        except FileNotFoundError:  # another has just finished
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if partial.is_dir() and os.path.samestat(os.fstat(lock), partial.stat()):
            break
        os.close(lock)
    for left in partial.iterdir():
        left.unlink()
    return lock
