"""The few numbers that adding a diff to its base does not bring back, kept beside the diff.

A float32 difference is exact where tuned and raw are within a factor of two of each other
(Sterbenz's lemma); elsewhere two roundings follow each other, and some numbers end a unit in the
last place away. Signed zeros, infinities and NaNs come out different too. Each row of a correction
holds a place in the flat tensor and the bits that belong there.
"""

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from gistkit.errors import ModelNotFoundError
from gistkit.paper.weights.manifest import CORRECTIONS, FILE_NAME, Manifest
from gistkit.paper.weights.tensors import UNREADABLE, damaged

_BITS = {4: torch.int32, 2: torch.int16}


def corrections(found: Tensor, wanted: Tensor, offset: int) -> Tensor:
    """Where two contiguous tensors of one type differ in any bit.

    Args:
        offset: place of their first number in the whole tensor.

    Returns:
        [n, 2] int64: place, bits of `wanted`.
    """
    bits = _bits(wanted)
    places = (_bits(found) != bits).nonzero().squeeze(1)
    return torch.stack([places + offset, bits[places].long()], dim=1)


class Corrections:
    """Those of a diff; none where it has no manifest.

    Raises:
        ModelNotFoundError: the file is missing or damaged, or does not fit the manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest | None) -> None:
        self._path = folder / CORRECTIONS
        self._counts = {} if manifest is None else manifest.corrections()
        if self._counts and not self._path.is_file():
            raise ModelNotFoundError(f"{folder} lacks {CORRECTIONS}; fetch it again")
        for name, count in self._counts.items():
            with self._opened(name) as notes:
                if notes.get_shape() != [count, 2] or notes.get_dtype() != "I64":
                    raise damaged(self._path, f"{name} has not the {count} of {FILE_NAME}")

    def apply(self, name: str, rows: Tensor, offset: int) -> None:
        """Put those corrections of a tensor that lie in contiguous `rows` into them, in place.

        Args:
            offset: place of the first number of `rows` in the whole tensor.
        """
        if count := self._counts.get(name, 0):
            with self._opened(name) as notes:
                first, last = (
                    bisect_left(
                        range(count), place, key=lambda row: int(notes[row : row + 1][0, 0])
                    )
                    for place in (offset, offset + rows.numel())
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
    """Put corrections into contiguous `rows`, in place; those that lie elsewhere are left out."""
    places = notes[:, 0] - offset
    here = (places >= 0) & (places < rows.numel())
    bits = _bits(rows)
    bits[places[here]] = notes[here, 1].to(bits.dtype)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(_BITS[tensor.element_size()])
