"""A gist: a prompt as the activations of its k gist tokens, batched, stacked, saved and loaded.

A `Prefix` is any start of a prompt kept as activations; a `Gist` is the one that training made
short. What the tensors mean is known to the model's adapter; here they only share one shape rule:

    every tensor is [B, ..., K, ·]: row b belongs to prompt b, the last but one axis to its tokens.

Rows of fewer tokens are padded on the left, so a gist of one token and one of ten fit in a batch.
Knows nothing about models or tokenizers.

Shapes: B batch, K tokens kept (the longest row), H heads, D head size, N layers.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from gisting.errors import GistFileError, GistMismatchError
from gisting.files import write_bytes

FORMAT_VERSION = 1
BLANK = b"0" * 64
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where one row comes from: SHA-256 of the instruction's text, and P, its tokens."""

    instruction_sha256: str
    instruction_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
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

    def __getitem__(self, index: int) -> Self:
        """Row `index` as a batch of one, without padding."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"gist {index} of {len(self)}")
        row = index % len(self)
        kept = self.lengths[row]
        tensors = {n: t[row : row + 1, ..., -kept:, :].clone() for n, t in self.tensors.items()}
        return replace(self, tensors=tensors, lengths=(kept,), provenance=(self.provenance[row],))

    def __iter__(self) -> Iterator[Self]:
        """The rows, one by one."""
        return (self[row] for row in range(len(self)))

    def select(self, rows: Tensor) -> Self:
        """The rows with these numbers [R], in this order, repeated where a number is."""
        numbers = rows.tolist()
        return replace(
            self,
            tensors={n: t[rows.to(t.device)] for n, t in self.tensors.items()},
            lengths=tuple(self.lengths[i] for i in numbers),
            provenance=tuple(self.provenance[i] for i in numbers),
        )

    @classmethod
    def stack(cls, gists: Sequence[Self]) -> Self:
        """One batch of several gists of the same model; numbers of tokens may differ.

        Raises:
            GistMismatchError: none given, or they differ in model, template, dtype or device.
        """
        if not gists:
            raise GistMismatchError("no gists to stack; give at least one")
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


@dataclass(frozen=True, slots=True, eq=False)
class Gist(Prefix):
    """B compressed prompts. Make one with `GistModel.compress`; it is one safetensors file on disk.

    The file's metadata holds one JSON text under "gist": format version, the model's fingerprint,
    the template, lengths, provenance, and the SHA-256 of the whole file with that digest blanked.
    """

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file, whole or not at all (raises SaveError)."""
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.tensors.items()}
        header = {
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "template": self.template,
            "lengths": list(self.lengths),
            "provenance": [asdict(p) for p in self.provenance],
            "digest": BLANK.decode(),
        }
        blank = to_bytes(tensors, metadata={"gist": json.dumps(header, sort_keys=True)})
        digest = hashlib.sha256(blank).hexdigest()
        # the digest stands before anything else that could read like a blank one
        return write_bytes(path, blank.replace(BLANK, digest.encode(), 1))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> "Gist":
        """Read a file that `save` wrote. Which model made it is checked where it is used.

        Raises:
            GistFileError: no such file, not a gist, another format version, truncated, or changed
                since it was written.
        """
        if not Path(path).is_file():
            raise GistFileError(f"no gist file at {path}; make one with gisting compress --save")
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                header = _check_header(path, (file.metadata() or {}).get("gist"))
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
                _check_shapes(path, shapes, header["lengths"])
                tensors = {name: file.get_tensor(name) for name in shapes}
        except (SafetensorError, OSError) as error:
            raise _damaged(path, str(error)) from error
        if any(t.dtype not in DTYPES for t in tensors.values()):
            raise _damaged(path, "tensors that are not floating point")
        digest = header["digest"]
        blank = Path(path).read_bytes().replace(digest.encode(), BLANK, 1)
        if digest != hashlib.sha256(blank).hexdigest():
            raise _damaged(path, "its digest does not match its contents")
        return cls(
            tensors={name: t.to(device) for name, t in tensors.items()},
            lengths=tuple(header["lengths"]),
            provenance=tuple(Provenance(**row) for row in header["provenance"]),
            model=header["model"],
            template=header["template"],
        )


def instruction_hash(instruction: str) -> str:
    """SHA-256 of the instruction's UTF-8 text, in hex."""
    return hashlib.sha256(instruction.encode()).hexdigest()


def _pad_left(tensor: Tensor, width: int) -> Tensor:
    missing = width - tensor.shape[-2]
    return torch.nn.functional.pad(tensor, (0, 0, missing, 0)) if missing else tensor


def _check_header(path: str | os.PathLike[str], text: str | None) -> dict[str, Any]:
    if text is None:
        raise GistFileError(f"{path} is not a gist file; make one with gisting compress --save")
    try:
        header = json.loads(text)
        version = header["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, "its header cannot be read") from error
    if version != FORMAT_VERSION:
        raise GistFileError(
            f"{path} has gist format version {version}, this gisting reads {FORMAT_VERSION}; "
            "compress the instruction again or install a gisting that reads it"
        )
    return _check_fields(path, header)


def _check_fields(path: str | os.PathLike[str], header: Any) -> dict[str, Any]:
    fields = {"format_version", "model", "template", "lengths", "provenance", "digest"}
    match header:
        case {
            "model": str(),
            "template": str(),
            "digest": str(digest),
            "lengths": list(n),
            "provenance": list(rows),
        } if (
            header.keys() == fields
            and digest.isascii()
            and n
            and all(type(x) is int and x > 0 for x in n)
            and len(rows) == len(n)
            and all(
                isinstance(r, dict) and r.keys() == {"instruction_sha256", "instruction_tokens"}
                for r in rows
            )
        ):
            return dict(header)
    raise _damaged(path, "its header lacks fields")


def _check_shapes(
    path: str | os.PathLike[str], shapes: Mapping[str, tuple[int, ...]], lengths: object
) -> None:
    assert isinstance(lengths, list)
    for name, shape in shapes.items():
        if len(shape) < 3 or shape[0] != len(lengths) or shape[-2] != max(lengths):
            raise _damaged(path, f"tensor {name!r} has shape {shape}")
    if not shapes:
        raise _damaged(path, "it holds no tensors")


def _damaged(path: str | os.PathLike[str], why: str) -> GistFileError:
    return GistFileError(f"{path} is damaged ({why}); compress the instruction again")
