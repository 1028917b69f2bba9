"""A gist: a prompt as the activations of its k gist tokens, batched, stacked, saved and loaded.

A `Prefix` is any start of a prompt kept as activations; a `Gist` is the one that training made
short. What the tensors mean is known to the model's adapter; here they only share one shape rule:

    every tensor is [B, ..., K, ·]: row b belongs to prompt b, the last but one axis to its tokens.

Rows of fewer tokens are padded on the left, so a gist of one token and one of ten fit in a batch.
Knows nothing about models or tokenizers.

Shapes: B batch, K tokens kept (the longest row), H heads, D head size, N layers.
"""

import hashlib
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from gistkit.errors import GistFileError, GistMismatchError
from gistkit.files import write_bytes
from gistkit.gistfile import GistFile, damaged, pack

FORMAT_VERSION = 1
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where one row comes from, and what is known of its quality.

    Attributes:
        instruction_sha256: of the instruction's text.
        instruction_tokens: P.
        fidelity: what `gistkit.fidelity` measured, as JSON; None: nobody has.
    """

    instruction_sha256: str
    instruction_tokens: int
    fidelity: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Prefix:
    """The first tokens of B prompts as activations.

    Attributes:
        tensors: by name, each [B, ..., K, ·].
        lengths: tokens kept of each row, at most K.
        provenance: one for each row.
        model: fingerprint of the model that computed it.
        template: name of the template its prompt was written in.
    """

    tensors: Mapping[str, Tensor]
    lengths: tuple[int, ...]
    provenance: tuple[Provenance, ...]
    model: str
    template: str

    def __len__(self) -> int:
        """B, the number of prompts."""
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """K, the tokens of the longest row."""
        return max(self.lengths)

    @property
    def num_bytes(self) -> int:
        """Memory of the activations in bytes."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the activations."""
        return next(iter(self.tensors.values())).dtype

    @property
    def device(self) -> torch.device:
        """Where the activations are."""
        return next(iter(self.tensors.values())).device

    @property
    def mask(self) -> Tensor:
        """[B, K] int64: 1 where a row has a token, 0 where it is padded on the left."""
        places = torch.arange(self.num_tokens, device=self.device)
        lengths = torch.tensor(self.lengths, device=self.device)
        return (places >= self.num_tokens - lengths[:, None]).long()

    def __repr__(self) -> str:
        kept = "1 token" if self.num_tokens == 1 else f"{self.num_tokens} tokens"
        return (
            f"<{type(self).__name__}: {len(self)} of {kept}, {self.num_bytes} bytes, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device}, "
            f"model {self.model[:12]}, template {self.template}>"
        )

    def __getitem__(self, index: int) -> Self:
        """Row `index` as a batch of one, without padding."""
        place = operator.index(index)
        if not -len(self) <= place < len(self):
            raise IndexError(f"gist {place} of {len(self)}")
        row = place % len(self)
        kept = self.lengths[row]
        tensors = {n: t[row : row + 1, ..., -kept:, :].clone() for n, t in self.tensors.items()}
        return replace(self, tensors=tensors, lengths=(kept,), provenance=(self.provenance[row],))

    def __iter__(self) -> Iterator[Self]:
        """The rows, one by one."""
        return (self[row] for row in range(len(self)))

    def select(self, rows: Tensor) -> Self:
        """The rows with these numbers [R], in this order, repeated where a number is."""
        numbers = rows.tolist()
        lengths = tuple(self.lengths[i] for i in numbers)
        return replace(
            self,
            tensors={
                name: tensor[rows.to(tensor.device)][..., -max(lengths) :, :]
                for name, tensor in self.tensors.items()
            },
            lengths=lengths,
            provenance=tuple(self.provenance[i] for i in numbers),
        )

    @classmethod
    def stack(cls, gists: Iterable[Self]) -> Self:
        """One batch of several gists of the same model; numbers of tokens may differ.

        Raises:
            GistMismatchError: none given, or they differ in model, template, dtype or device.
        """
        gists = list(gists)
        if not gists:
            raise GistMismatchError("no gists to stack; give at least one")
        for gist in gists:
            if not isinstance(gist, Prefix):
                raise GistMismatchError(f"{gist!r:.60} is no gist; stack what compress returned")
        first = gists[0]
        for gist in gists[1:]:
            for what in ("model", "template", "dtype", "device"):
                if getattr(gist, what) != getattr(first, what):
                    raise GistMismatchError(
                        f"cannot stack gists of different {what}: {getattr(first, what)} and "
                        f"{getattr(gist, what)}; compress them with one model"
                    )
        width = max(gist.num_tokens for gist in gists)
        return replace(
            first,
            tensors={
                name: torch.cat([_pad_left(gist.tensors[name], width) for gist in gists])
                for name in first.tensors
            },
            lengths=tuple(n for gist in gists for n in gist.lengths),
            provenance=tuple(p for gist in gists for p in gist.provenance),
        )

    def check(self, model: str, template: str, inputs: int) -> None:
        """Raise GistMismatchError unless it was made by this model and fits this many inputs."""
        if self.model != model:
            raise GistMismatchError(
                f"this gist was made by another model, or in another precision (fingerprint "
                f"{self.model[:12]}, not {model[:12]}); compress the instruction with this model"
            )
        if self.template != template:
            raise GistMismatchError(
                f"this gist was made for template {self.template!r}, the model uses {template!r}; "
                "compress the instruction again"
            )
        if len(self) not in (1, inputs):
            raise GistMismatchError(
                f"{len(self)} gists for {inputs} inputs; give one gist, or one for each input"
            )

    def expand(self, batch: int) -> Self:
        """A batch of `batch` rows: itself, or its one row seen `batch` times without copying.

        Raises:
            GistMismatchError: it has neither 1 nor `batch` rows.
        """
        if len(self) == batch:
            return self
        if len(self) != 1:
            raise GistMismatchError(
                f"{len(self)} gists for {batch} inputs; give one gist, or one for each input"
            )
        return replace(
            self,
            tensors={n: t.expand(batch, *t.shape[1:]) for n, t in self.tensors.items()},
            lengths=self.lengths * batch,
            provenance=self.provenance * batch,
        )

    def to(self, *, device: torch.device | str | None = None) -> Self:
        """The same on another device."""
        return replace(self, tensors={n: t.to(device) for n, t in self.tensors.items()})


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Gist(Prefix):
    """B compressed prompts. Make one with `GistModel.compress`; it is one safetensors file on disk.

    The file's metadata holds one JSON text under "gist": format version, the model's fingerprint,
    the template, lengths, provenance, and the SHA-256 of the whole file with that digest blanked.
    """

    def to_bytes(self, *, entry: Mapping[str, Any] | None = None) -> bytes:
        """The bytes of its file. `entry` is kept in the header: what a store knows of the gist."""
        header = self.header()
        return pack(header if entry is None else {**header, "entry": entry}, self.tensors)

    def header(self) -> dict[str, Any]:
        """What its file says of it, beside the digest; values of JSON."""
        return {
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "template": self.template,
            "lengths": list(self.lengths),
            "provenance": [_row(p) for p in self.provenance],
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file, whole or not at all (raises SaveError)."""
        return write_bytes(path, self.to_bytes())

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> "Gist":
        """Read a file that `save` wrote. Which model made it is checked where it is used.

        Raises:
            GistFileError: no such file, not a gist, another format version, truncated, or changed
                since it was written.
        """
        return cls.from_file(GistFile.open(path, check=check_front)).to(device=device)

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> "Gist":
        """Read what `to_bytes` gave; `name` is for messages (raises GistFileError)."""
        return cls.from_file(GistFile.of(data, name))

    @classmethod
    def from_file(cls, file: GistFile) -> "Gist":
        """Check an open file, its digest last, and look at its tensors where they are.

        Raises:
            GistFileError: not a gist, another format version, or changed since it was written.
        """
        header = check_front(file)
        file.check_digest()
        return cls(
            tensors=file.tensors(),
            lengths=tuple(header["lengths"]),
            provenance=tuple(Provenance(**row) for row in header["provenance"]),
            model=header["model"],
            template=header["template"],
        )


def check_front(file: GistFile) -> Mapping[str, Any]:
    """The header of an open file, if it is a gist's and its shapes fit; the digest is not checked.

    Raises:
        GistFileError: it is not, or of another format version.
    """
    header = _check_header(file.path, file.header)
    _check_shapes(file.path, {n: place[1] for n, place in file.places.items()}, header["lengths"])
    return header


def instruction_hash(instruction: str) -> str:
    """SHA-256 of the instruction's UTF-8 text, in hex."""
    return hashlib.sha256(instruction.encode()).hexdigest()


def _pad_left(tensor: Tensor, width: int) -> Tensor:
    missing = width - tensor.shape[-2]
    return torch.nn.functional.pad(tensor, (0, 0, missing, 0)) if missing else tensor


def _check_header(path: str, header: Mapping[str, Any]) -> Mapping[str, Any]:
    version = header.get("format_version")
    if version is None:
        raise damaged(path, "its header lacks fields")
    if version != FORMAT_VERSION:
        raise GistFileError(
            f"{path} has gist format version {str(version)[:20]}, this gistkit reads "
            f"{FORMAT_VERSION}; compress the instruction again or install a gistkit that reads it"
        )
    return _check_fields(path, header)


def _check_fields(path: str, header: Mapping[str, Any]) -> Mapping[str, Any]:
    fields = {"format_version", "model", "template", "lengths", "provenance", "digest"}
    match header:
        case {
            "model": str(),
            "template": str(),
            "digest": str(digest),
            "lengths": list(n),
            "provenance": list(rows),
        } if (
            header.keys() - {"entry"} == fields
            and digest.isascii()
            and n
            and all(type(x) is int and x > 0 for x in n)
            and len(rows) == len(n)
            and all(_is_row(row) for row in rows)
        ):
            return header
    raise damaged(path, "its header lacks fields")


def _row(provenance: Provenance) -> dict[str, Any]:
    # without a fidelity that nobody measured: such files are what they were before there was one
    return {name: value for name, value in asdict(provenance).items() if value is not None}


def _is_row(row: object) -> bool:
    match row:
        case {"instruction_sha256": str(digest), "instruction_tokens": int(tokens), **rest}:
            return (
                _HASH.fullmatch(digest) is not None
                and type(tokens) is int
                and 0 <= tokens < 2**31
                and (not rest or (rest.keys() == {"fidelity"} and type(rest["fidelity"]) is dict))
            )
    return False


def _check_shapes(path: str, shapes: Mapping[str, tuple[int, ...]], lengths: list[int]) -> None:
    for name, shape in shapes.items():
        if len(shape) < 3 or shape[0] != len(lengths) or shape[-2] != max(lengths):
            raise damaged(path, f"tensor {name!r} has shape {shape}")
    if not shapes:
        raise damaged(path, "it holds no tensors")
