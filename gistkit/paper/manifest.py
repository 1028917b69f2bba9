"""What a weight diff of gistkit is made of: digests of its tensors, and corrections.

`weight_diff.json` holds SHA-256 digests over the numbers as little-endian float32, the same in
whatever precision a copy of the base is stored, so that no other base and no damage passes.

Corrections are the few numbers that adding the diff to its base does not restore; they are stored
beside the diff, which can be added without them as published. A float32 difference is exact where
tuned and raw are within a factor of two of each other (Sterbenz's lemma); elsewhere two roundings
follow each other, and some numbers end a unit in the last place away. Signed zeros, infinities and
NaNs come out different too. Each row of a correction holds an index into the flat tensor and the
bits that belong there.
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from gistkit.errors import ModelNotFoundError
from gistkit.paper.released import MANIFEST
from gistkit.paper.weight_files import UNREADABLE, damaged

CORRECTIONS = "weight_diff_corrections.safetensors"
FORMAT_VERSION = 1
_BITS = {4: torch.int32, 2: torch.int16}


@dataclass(frozen=True, slots=True)
class Record:
    """One tensor: precision and shape of the tuned one, digests of all three, corrections."""

    dtype: str
    shape: tuple[int, ...]
    raw: str
    diff: str
    tuned: str
    corrections: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """All tensors of a diff by name, its base, and the digests of its other files by name."""

    tensors: Mapping[str, Record]
    base: str = ""
    others: Mapping[str, str] = field(default_factory=dict)

    def corrections(self) -> dict[str, int]:
        """How many corrections each tensor has that has any."""
        return {name: r.corrections for name, r in self.tensors.items() if r.corrections}

    def save(self, folder: Path) -> None:
        text = json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=1)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Manifest | None":
        """The manifest in a folder; None where there is none (published diffs)."""
        path = folder / MANIFEST
        if not path.is_file():
            return None
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            if raw["format_version"] != FORMAT_VERSION:
                raise ValueError(f"format version {raw['format_version']}")
            tensors = {name: _record(entry) for name, entry in raw["tensors"].items()}
            return cls(tensors=tensors, base=str(raw["base"]), others=dict(raw["others"]))
        except UNREADABLE as error:
            raise ModelNotFoundError(
                f"{path} cannot be read ({error!r}); fetch or make the diff again"
            ) from error


class Digest:
    """SHA-256 of a tensor given a few rows at a time."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()

    def add(self, rows: Tensor) -> None:
        self._sha.update(rows.float().contiguous().view(torch.uint8).numpy().data)

    def __str__(self) -> str:
        return self._sha.hexdigest()


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record(entry: Mapping[str, Any]) -> Record:
    record = Record(**{**entry, "shape": tuple(int(n) for n in entry["shape"])})
    if record.dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"precision {record.dtype}")
    return record


def corrections(found: Tensor, wanted: Tensor, offset: int) -> Tensor:
    """Where two contiguous tensors of one type differ: [n, 2] int64, index and bits of `wanted`.

    `offset` is the index of their first number in the whole flat tensor.
    """
    bits = _bits(wanted)
    indices = (_bits(found) != bits).nonzero().squeeze(1)
    return torch.stack([indices + offset, bits[indices].long()], dim=1)


class Corrections:
    """The corrections of a diff; none where it has no manifest.

    Raises ModelNotFoundError if the file is missing or damaged, or does not fit the manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest | None) -> None:
        self._path = folder / CORRECTIONS
        self._counts = {} if manifest is None else manifest.corrections()
        if self._counts and not self._path.is_file():
            raise ModelNotFoundError(f"{folder} lacks {CORRECTIONS}; fetch it again")
        for name, count in self._counts.items():
            with self._opened(name) as notes:
                if notes.get_shape() != [count, 2] or notes.get_dtype() != "I64":
                    raise damaged(self._path, f"{name} has not the {count} of {MANIFEST}")

    def apply(self, name: str, rows: Tensor, offset: int) -> None:
        """Put those corrections of a tensor that lie in contiguous `rows` into them, in place.

        `offset` is the index of the first number of `rows` in the whole flat tensor.
        """
        if count := self._counts.get(name, 0):
            with self._opened(name) as notes:
                first, last = (
                    bisect_left(
                        range(count), index, key=lambda row: int(notes[row : row + 1][0, 0])
                    )
                    for index in (offset, offset + rows.numel())
                )
                correct(rows, notes[first:last], offset)

    @contextmanager
    def _opened(self, name: str) -> Iterator[Any]:
        try:
            with safe_open(self._path, framework="pt") as file:
                yield file.get_slice(name)
        except ModelNotFoundError:
            raise
        except UNREADABLE as error:
            raise damaged(self._path, error) from error


def correct(rows: Tensor, notes: Tensor, offset: int) -> None:
    """Put corrections into contiguous `rows`, in place; those of other rows are ignored."""
    indices = notes[:, 0] - offset
    here = (indices >= 0) & (indices < rows.numel())
    bits = _bits(rows)
    bits[indices[here]] = notes[here, 1].to(bits.dtype)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(_BITS[tensor.element_size()])
