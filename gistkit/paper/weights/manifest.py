"""`weight_diff.json`: what a diff of ours is made of, so that no other base and no damage passes.

Digests are SHA-256 over the numbers as little-endian float32: the same whatever precision a copy of
the base is stored in. Corrections are the few numbers that float32 addition does not bring back;
they lie beside the diff, which others can add as published.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gistkit.errors import ModelNotFoundError
from gistkit.paper.weights.tensors import UNREADABLE

FILE_NAME = "weight_diff.json"
CORRECTIONS = "weight_diff_corrections.safetensors"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Record:
    """One tensor: precision and shape of the tuned one, digests of all three, corrections."""

    dtype: str
    shape: tuple[int, ...]
    raw: str
    diff: str
    tuned: str
    corrections: int = 0

    @property
    def torch_dtype(self) -> torch.dtype:
        """Precision of the tuned tensor."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


@dataclass(frozen=True, slots=True)
class Manifest:
    """All tensors of a diff, by name."""

    tensors: Mapping[str, Record]
    base: str = ""
    others: Mapping[str, str] = field(default_factory=dict)

    def corrections(self) -> dict[str, int]:
        """How many corrections each tensor has that has any."""
        return {name: r.corrections for name, r in self.tensors.items() if r.corrections}

    def save(self, folder: Path) -> None:
        """Write it into a folder that is not in place yet."""
        text = json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=1)
        (folder / FILE_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Manifest | None":
        """The manifest in a folder; None where there is none (published diffs).

        Raises:
            ModelNotFoundError: it is damaged, or of another version.
        """
        path = folder / FILE_NAME
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
        """More rows, of any float type up to 32 bits."""
        self._sha.update(rows.float().contiguous().view(torch.uint8).numpy().data)

    def __str__(self) -> str:
        return self._sha.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record(entry: Mapping[str, Any]) -> Record:
    record = Record(**{**entry, "shape": tuple(int(n) for n in entry["shape"])})
    if record.dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"precision {record.dtype}")
    return record
