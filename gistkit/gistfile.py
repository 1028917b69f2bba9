"""A gist file: safetensors whose metadata holds one JSON header with the SHA-256 of the whole file.

    8 bytes: n | n bytes of JSON: {"__metadata__": {"gist": header}, name: place, ...} | tensors

Files come from anywhere. All sizes are checked against each other before memory is taken; tensors
are views of the bytes that were read; a change of any bit is noticed, of the padding and the digest
too.
Knows nothing about what the tensors mean.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from gistkit.errors import GistFileError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FIELD = "gist"
BLANK = "0" * 64
MAX_HEADER = 2**24
"""Bytes; reading JSON takes many times its size."""

PathLike = str | os.PathLike[str]


def pack(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of a file; `header` goes in with its digest."""
    given = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    # nothing that sorts before the digest may read like a blank one
    text = json.dumps({**header, "digest": BLANK}, sort_keys=True)
    blank = save(given, metadata={FIELD: text})
    digest = hashlib.sha256(blank).hexdigest()
    return blank.replace(BLANK.encode(), digest.encode(), 1)


@dataclass(frozen=True, slots=True)
class GistFile:
    """A file's bytes, whose front was read and whose sizes fit; the digest is not yet checked.

    Attributes:
        path: where it came from, for messages.
        data: [n] uint8, all of it.
        front: the first bytes, up to the tensors.
        header: what was given to `pack`, with its digest; nothing in it is checked.
        places: of each tensor: dtype, shape, first byte, byte behind its last.
    """

    path: str
    data: Tensor
    front: bytes
    header: Mapping[str, Any]
    places: Mapping[str, "_Place"]

    @classmethod
    def open(
        cls, path: PathLike, *, check: "Callable[[GistFile], object] | None" = None
    ) -> "GistFile":
        """Read a file, once `check` has accepted its front (see `read_file`).

        Raises:
            GistFileError: no such file, not a gist file, or its sizes do not fit.
        """
        try:
            return read_file(path, check=check)
        except FileNotFoundError as error:
            raise GistFileError(
                f"no gist file at {path}; make one with gistkit compress --save"
            ) from error
        except OSError as error:
            raise GistFileError(f"no gist file at {path}: {error.strerror or error}") from error

    @classmethod
    def of(cls, data: Tensor | bytes, path: PathLike, *, size: int | None = None) -> "GistFile":
        """Read the front of a file's bytes.

        Args:
            data: all of them ([n] uint8 where they are a tensor), or at least the front.
            path: for messages.
            size: of the whole file, where `data` is less than it.

        Raises:
            GistFileError: not a gist file, or its sizes do not fit.
        """
        if isinstance(data, bytes):
            data = torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)
        size = len(data) if size is None else size
        front, places, text = _read_front(data, path)
        if text is None:
            raise GistFileError(f"{path} is not a gist file; make one with gistkit compress --save")
        end = len(front)
        for *_, first, last in sorted(places.values(), key=lambda place: place[2:]):
            if first != end:
                raise damaged(path, "its tensors overlap, or leave holes")
            end = last
        if end != size:
            raise damaged(path, "its tensors and its length do not fit")
        try:
            header = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise damaged(path, "its header cannot be read") from error
        if not isinstance(header, dict):
            raise damaged(path, "its header cannot be read")
        return cls(os.fspath(path), data, front, header, places)

    def check_digest(self) -> None:
        """Raise GistFileError if any bit has changed since `pack`. Reads the whole file."""
        digest = self.header.get("digest")
        try:
            place = self.front.index(digest.encode("ascii"))  # type: ignore[union-attr]
        except (AttributeError, ValueError):
            raise damaged(self.path, "it has no digest") from None
        assert isinstance(digest, str)
        sha = hashlib.sha256(self.front[:place])
        sha.update(BLANK.encode())
        sha.update(self.front[place + len(BLANK) :])
        sha.update(self.data[len(self.front) :].numpy().data)
        if sha.hexdigest() != digest:
            raise damaged(self.path, "its digest does not match its contents")

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, as views of `data`."""
        found = {}
        for name, (dtype, shape, first, last) in self.places.items():
            part = self.data[first:last]
            # a file of ours is aligned; another's need not be
            part = part.clone() if first % dtype.itemsize else part
            found[name] = part.view(dtype).reshape(shape)
        return found


def read_file(
    path: PathLike,
    *,
    check: Callable[[GistFile], object] | None = None,
    front_only: bool = False,
    follow_symlinks: bool = True,
) -> GistFile:
    """Read a file's front, and the rest once its sizes fit and `check` has not raised.

    It is copied, not mapped: truncating a mapped file kills its readers (SIGBUS).

    Raises:
        OSError: no such file, no ordinary one (IsADirectoryError), or it cannot be read.
        GistFileError: not a gist file, or its sizes do not fit.
    """
    if not stat.S_ISREG(Path(path).stat(follow_symlinks=follow_symlinks).st_mode):
        raise IsADirectoryError(f"{path} is no ordinary file")
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow_symlinks else os.O_NOFOLLOW)
    with os.fdopen(os.open(path, flags), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(8)
        front = first + file.read(max(min(front_length(first), size) - 8, 0))
        opened = GistFile.of(front, path, size=size)
        if check is not None:
            check(opened)
        if front_only:
            return opened
        try:
            data = torch.empty(size, dtype=torch.uint8)
        except RuntimeError as error:  # more than there is memory
            raise OSError(str(error)) from error
        data[: len(front)] = opened.data
        if file.readinto(data[len(front) :].numpy().data) != size - len(front):
            raise damaged(path, "it is cut off")
    return replace(opened, data=data)


def front_length(first: bytes) -> int:
    """How many bytes to read for `GistFile.of(..., size=)`, from a file's first eight."""
    return 8 + min(int.from_bytes(first[:8], "little"), MAX_HEADER)


def damaged(path: PathLike, why: str) -> GistFileError:
    """The error that says so."""
    return GistFileError(f"{path} is damaged ({why}); compress the instruction again")


_Place = tuple[torch.dtype, tuple[int, ...], int, int]


def _read_front(data: Tensor, path: PathLike) -> tuple[bytes, dict[str, _Place], str | None]:
    length = int.from_bytes(data[:8].numpy().tobytes(), "little")
    start = 8 + length
    if len(data) < 8 or start > len(data):
        raise damaged(path, "it is cut off")
    if length > MAX_HEADER:
        raise damaged(path, f"a header of {length} bytes")
    front = data[:start].numpy().tobytes()
    try:
        described = json.loads(front[8:])
        metadata = described.pop("__metadata__", {})
        return front, {n: _place(v, start) for n, v in described.items()}, metadata.get(FIELD)
    except _SizeError as error:
        raise damaged(path, str(error)) from error
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise damaged(path, "its header cannot be read") from error


def _place(value: Any, start: int) -> _Place:
    dtype, shape, (first, last) = value["dtype"], value["shape"], value["data_offsets"]
    if dtype not in DTYPES:
        raise _SizeError("tensors that are not floating point")
    if not all(type(n) is int and n >= 0 for n in (*shape, first, last)):
        raise _SizeError(f"shape {str(shape)[:80]}")
    if math.prod(shape) * DTYPES[dtype].itemsize != last - first:
        raise _SizeError(f"shape {str(shape)[:80]} in {last - first} bytes")
    return DTYPES[dtype], tuple(shape), start + first, start + last


class _SizeError(ValueError):
    """Sizes that do not fit each other."""
