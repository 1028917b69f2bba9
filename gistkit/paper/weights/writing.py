"""Writing a folder of weights piece by piece: all of it appears at once, or nothing does."""

import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from gistkit.errors import GistkitError, SaveError
from gistkit.paper.weights.tensors import DTYPES, INDEX, SINGLE

SHARD = 5 << 30
"""Bytes of a shard, but for a tensor that is larger."""

SPARE = 64 << 20
"""Bytes that must stay free on the disk: corrections, tokenizer, other people."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()} | {torch.int64: "I64"}
_ENTRY = 200  # bytes that an entry of the header takes beside its name, at most


class TensorFile:
    """A safetensors file to which rows are appended.

    The header stands first in the format but is known last; room is left for it.
    """

    def __init__(self, file: BinaryIO, names: Iterable[str]) -> None:
        """Args: names: all tensors that may be appended."""
        self._file = file
        self._room = sum(_ENTRY + len(json.dumps(name)) for name in names) + _ENTRY
        self._room += -self._room % 8
        self._entries: dict[str, tuple[str, list[int], int, int]] = {}
        self._end = 0
        file.write(bytes(8 + self._room))

    def append(self, name: str, rows: Tensor, *, scalar: bool = False) -> None:
        """Add rows to the tensor `name`; no other may have been begun since its first ones."""
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


def num_bytes(tensors: Mapping[str, Shape]) -> int:
    """Bytes of all tensors."""
    return sum(prod(shape) * dtype.itemsize for shape, dtype in tensors.values())


def in_shards(tensors: Mapping[str, Shape], *, limit: int) -> dict[str, list[str]]:
    """Which tensors go into which file, by names as transformers gives them.

    Wide numbers come first: the format leaves no gaps, and they must be aligned.
    """
    groups: list[list[str]] = [[]]
    size = 0
    for name in sorted(tensors, key=lambda name: -tensors[name][1].itemsize):
        more = num_bytes({name: tensors[name]})
        if groups[-1] and size + more > limit:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += more
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    count = len(groups)
    return {f"model-{i:05}-of-{count:05}.safetensors": names for i, names in enumerate(groups, 1)}


def write_index(folder: Path, shards: Mapping[str, list[str]], size: int) -> None:
    """The index that names the shard of every tensor; for a single file there is none."""
    if len(shards) > 1:
        where = {name: file for file, names in shards.items() for name in names}
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def check_room(out: Path, size: int) -> None:
    """Refuse a folder that is in use or has no room for `size` bytes (raises SaveError)."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SaveError(f"{out} exists already; choose another folder, or remove it")
    place = next(folder for folder in out.absolute().parents if folder.exists())
    if (free := shutil.disk_usage(place).free) < size + SPARE:
        raise SaveError(
            f"{out} needs {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; free space or "
            "choose another place"
        )


@contextmanager
def whole_folder(out: Path, size: int) -> Iterator[Path]:
    """A temporary folder beside `out` that becomes `out` at the end of the block, in one step.

    What a killed process left behind is removed by the next one; two at a time wait for each other.

    Args:
        out: a new folder, or an empty one.
        size: bytes that are going to be written.

    Raises:
        SaveError: `out` holds something already, the disk has no room, or writing failed.
    """
    partial = out.parent / f".{out.name}.partial"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = _make_alone(partial)
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
            f"could not write {out}: {error.strerror or error}; free space or choose another place"
        ) from error


def _make_alone(partial: Path) -> int:
    """Make an empty folder and lock it, so that a second process waits; returns the lock."""
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
