"""A gist: a prompt as the activations of its k gist tokens, batched, stacked, saved and loaded.

A `Prefix` is any start of a prompt kept as activations; a `Gist` is the one that training made
short. What the tensors mean is known to the model's adapter; here they only share one shape rule:

    every tensor is [B, ..., K, ·]: row b belongs to prompt b, the last but one axis to its tokens.

Rows of fewer tokens are padded on the left, so a gist of one token and one of ten fit in a batch.

A gist file is safetensors whose metadata holds one JSON header with the SHA-256 of the whole file:

    8 bytes: n | n bytes of JSON: {"__metadata__": {"gist": header}, name: entry, ...} | tensors

Files come from anywhere. All sizes are checked against each other before memory is taken; tensors
are views of the bytes that were read; any changed bit is noticed, padding and digest included.
Knows nothing about models or tokenizers.

Shapes: B batch, K tokens kept (the longest row), H heads, D head size, N layers.
"""

import hashlib
import json
import math
import operator
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save
from torch import Tensor

from gistkit.errors import GistFileError, GistMismatchError
from gistkit.files import write_bytes

FORMAT_VERSION = 1
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FIELD = "gist"
BLANK = "0" * 64
MAX_HEADER = 2**24
"""Bytes; reading JSON takes many times its size."""

PathLike = str | os.PathLike[str]
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where one row comes from, and what is known of its quality.

    Attributes:
        instruction_tokens: P.
        fidelity: what `gistkit.fidelity` measured, as JSON; None where it was not measured.
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
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """K, the tokens of the longest row."""
        return max(self.lengths)

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.tensors.values())).dtype

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors.values())).device

    @property
    def mask(self) -> Tensor:
        """[B, K] int64: 1 where a row has a token, 0 where it is padded on the left."""
        columns = torch.arange(self.num_tokens, device=self.device)
        lengths = torch.tensor(self.lengths, device=self.device)
        return (columns >= self.num_tokens - lengths[:, None]).long()

    def __repr__(self) -> str:
        tokens = "1 token" if self.num_tokens == 1 else f"{self.num_tokens} tokens"
        return (
            f"<{type(self).__name__}: {len(self)} of {tokens}, {self.num_bytes} bytes, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device}, "
            f"model {self.model[:12]}, template {self.template}>"
        )

    def __getitem__(self, index: int) -> Self:
        """Row `index` as a batch of one, without padding."""
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"gist {number} of {len(self)}")
        row = number % len(self)
        length = self.lengths[row]
        tensors = {n: t[row : row + 1, ..., -length:, :].clone() for n, t in self.tensors.items()}
        return replace(self, tensors=tensors, lengths=(length,), provenance=(self.provenance[row],))

    def __iter__(self) -> Iterator[Self]:
        return (self[row] for row in range(len(self)))

    def select(self, rows: Tensor) -> Self:
        """The rows with these numbers [R], in this order; a number may occur several times."""
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
        """Itself, or its one row seen `batch` times without copying (raises GistMismatchError)."""
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
        return replace(self, tensors={n: t.to(device) for n, t in self.tensors.items()})


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Gist(Prefix):
    """B compressed prompts. Make one with `GistModel.compress`; it is one safetensors file on disk.

    The header of its file: format version, the model's fingerprint, the template, lengths,
    provenance, and the SHA-256 of the whole file with that digest blanked.
    """

    def to_bytes(self, *, entry: Mapping[str, Any] | None = None) -> bytes:
        """Its file, with `entry`, what a store knows of the gist, in the header."""
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.tensors.items()}
        header = {**self.header(), **({} if entry is None else {"entry": entry}), "digest": BLANK}
        # nothing that sorts before the digest may read like a blank one
        blank = save(tensors, metadata={FIELD: json.dumps(header, sort_keys=True)})
        digest = hashlib.sha256(blank).hexdigest()
        return blank.replace(BLANK.encode(), digest.encode(), 1)

    def header(self) -> dict[str, Any]:
        """The header of its file without the digest; values of JSON."""
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
        """Read a file that `save` wrote. Which model made it is checked when it is used.

        Raises:
            GistFileError: no such file, not a gist, another format version, truncated, or changed
                since it was written.
        """
        return cls.from_file(GistFile.open(path)).to(device=device)

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> "Gist":
        """Read what `to_bytes` gave; `name` is for messages (raises GistFileError)."""
        return cls.from_file(GistFile.of(data, name))

    @classmethod
    def from_file(cls, file: "GistFile") -> "Gist":
        """Check a file, its digest last; tensors are views of its bytes (raises GistFileError)."""
        header = check_front(file)
        file.check_digest()
        return cls(
            tensors=file.tensors(),
            lengths=tuple(header["lengths"]),
            provenance=tuple(Provenance(**row) for row in header["provenance"]),
            model=header["model"],
            template=header["template"],
        )


@dataclass(frozen=True, slots=True)
class GistFile:
    """A file's bytes, whose front was read and whose sizes fit; the digest is not yet checked.

    Attributes:
        path: where it came from, for messages.
        data: [n] uint8, all of it.
        front: the first bytes, up to the tensors.
        header: the gist's, with the digest; nothing in it is checked.
        entries: of each tensor: dtype, shape, first byte, byte behind its last.
    """

    path: str
    data: Tensor
    front: bytes
    header: Mapping[str, Any]
    entries: Mapping[str, "_Entry"]

    @classmethod
    def open(cls, path: PathLike) -> "GistFile":
        """Read a file whose front is a gist's (raises GistFileError)."""
        try:
            return read_file(path, check=check_front)
        except FileNotFoundError as error:
            raise GistFileError(
                f"no gist file at {path}; compress an instruction and save its gist"
            ) from error
        except OSError as error:
            raise GistFileError(f"no gist file at {path}: {error.strerror or error}") from error

    @classmethod
    def of(cls, data: Tensor | bytes, path: PathLike, *, size: int | None = None) -> "GistFile":
        """Read the front of a file's bytes (raises GistFileError where its sizes do not fit).

        Args:
            data: all of them ([n] uint8 where they are a tensor), or at least the front.
            size: of the whole file, where `data` is less than it.
        """
        if isinstance(data, bytes):
            data = torch.frombuffer(bytearray(data or b"\0"), dtype=torch.uint8)
        length = int.from_bytes(data[:8].numpy().tobytes(), "little")
        end = 8 + length
        if len(data) < 8 or end > len(data):
            raise damaged(path, "it is cut off")
        if length > MAX_HEADER:
            raise damaged(path, f"a header of {length} bytes")
        front = data[:end].numpy().tobytes()
        try:
            described = json.loads(front[8:])
            text = described.pop("__metadata__", {}).get(FIELD)
            entries = {name: _entry(value, end, path) for name, value in described.items()}
            header = {} if text is None else dict(json.loads(text))
        except GistFileError:
            raise
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            raise damaged(path, "its header cannot be read") from error
        if text is None:
            raise GistFileError(
                f"{path} is not a gist file; compress an instruction and save its gist"
            )
        for *_, first, last in sorted(entries.values(), key=lambda entry: entry[2:]):
            if first != end:
                raise damaged(path, "its tensors overlap, or leave holes")
            end = last
        if end != (len(data) if size is None else size):
            raise damaged(path, "its tensors and its length do not fit")
        return cls(os.fspath(path), data, front, header, entries)

    def check_digest(self) -> None:
        """Raise GistFileError if any bit has changed since it was written. Reads the whole file."""
        digest = self.header.get("digest")
        try:
            start = self.front.index(digest.encode("ascii"))  # type: ignore[union-attr]
        except (AttributeError, ValueError):
            raise damaged(self.path, "it has no digest") from None
        assert isinstance(digest, str)
        sha = hashlib.sha256(self.front[:start])
        sha.update(BLANK.encode())
        sha.update(self.front[start + len(BLANK) :])
        sha.update(self.data[len(self.front) :].numpy().data)
        if sha.hexdigest() != digest:
            raise damaged(self.path, "its digest does not match its contents")

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, as views of `data`."""
        found = {}
        for name, (dtype, shape, first, last) in self.entries.items():
            part = self.data[first:last]
            # files of gistkit are aligned; others need not be
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
        OSError: no such file, no regular one (IsADirectoryError), or it cannot be read.
        GistFileError: not a gist file, or its sizes do not fit.
    """
    if not stat.S_ISREG(Path(path).stat(follow_symlinks=follow_symlinks).st_mode):
        raise IsADirectoryError(f"{path} is no regular file")
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
    return GistFileError(f"{path} is damaged ({why}); compress the instruction again")


_Entry = tuple[torch.dtype, tuple[int, ...], int, int]


def _entry(value: Any, start: int, path: PathLike) -> _Entry:
    dtype, shape, (first, last) = value["dtype"], value["shape"], value["data_offsets"]
    if dtype not in DTYPES:
        raise damaged(path, "tensors that are not floating point")
    if not all(type(n) is int and n >= 0 for n in (*shape, first, last)):
        raise damaged(path, f"shape {str(shape)[:80]}")
    if math.prod(shape) * DTYPES[dtype].itemsize != last - first:
        raise damaged(path, f"shape {str(shape)[:80]} in {last - first} bytes")
    return DTYPES[dtype], tuple(shape), start + first, start + last


def check_front(file: GistFile) -> Mapping[str, Any]:
    """The header, if it is a gist's; checks shapes, not the digest (raises GistFileError)."""
    header = file.header
    version = header.get("format_version")
    if version not in (None, FORMAT_VERSION):
        raise GistFileError(
            f"{file.path} has gist format version {str(version)[:20]}, this gistkit reads "
            f"{FORMAT_VERSION}; compress the instruction again or install a gistkit that reads it"
        )
    if version is None or not _has_fields(header):
        raise damaged(file.path, "its header lacks fields")
    lengths = header["lengths"]
    for name, (_, shape, *_) in file.entries.items():
        if len(shape) < 3 or shape[0] != len(lengths) or shape[-2] != max(lengths):
            raise damaged(file.path, f"tensor {name!r} has shape {shape}")
    if not file.entries:
        raise damaged(file.path, "it holds no tensors")
    return header


def instruction_hash(instruction: str) -> str:
    return hashlib.sha256(instruction.encode()).hexdigest()


def provenance_of(texts: Sequence[str], lengths: Sequence[int]) -> tuple[Provenance, ...]:
    return tuple(
        Provenance(instruction_hash(text), n) for text, n in zip(texts, lengths, strict=True)
    )


def _pad_left(tensor: Tensor, width: int) -> Tensor:
    missing = width - tensor.shape[-2]
    return torch.nn.functional.pad(tensor, (0, 0, missing, 0)) if missing else tensor


def _has_fields(header: Mapping[str, Any]) -> bool:
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
            return True
    return False


def _row(provenance: Provenance) -> dict[str, Any]:
    # no fidelity where none was measured, so that such files stay the same bytes
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
