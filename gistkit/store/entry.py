"""What a store knows of a gist beside its activations. Knows nothing of where it is kept."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from gistkit.errors import OptionError
from gistkit.gist import Gist, GistFile, check_front, damaged
from gistkit.store.key import GistKey

ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One gist of a store.

    Attributes:
        id: 64 hex digits, the content address.
        keyed: found by its `GistKey`; False: taken from a file, found by its id alone.
        model: fingerprint of the model that made it.
        template: name of its prompt template.
        num_tokens: k.
        num_bytes: of its file.
        instruction_length: P, the tokens it stands for.
        instruction_sha256: of the instruction's text.
        created: seconds since 1970.
        last_used: likewise; other processes' uses may come in some seconds late.
        expires: likewise; None: never.
        pinned: never evicted for room.
        fidelity: its score in [0, 1]; None: not measured.
    """

    id: str
    keyed: bool
    model: str
    template: str
    num_tokens: int
    num_bytes: int
    instruction_length: int
    instruction_sha256: str
    created: float
    last_used: float
    expires: float | None = None
    pinned: bool = False
    fidelity: float | None = None

    def expired(self, now: float) -> bool:
        """Whether its time is over."""
        return self.expires is not None and self.expires <= now

    def to_json(self) -> Mapping[str, Any]:
        """The attributes by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What a store writes into a gist's file, so that files alone are enough to make an index.

    Attributes:
        key: what it answers for; None: it is found by its id alone.
        created, expires: seconds since 1970; None: never.
        pinned: never evicted for room.
    """

    key: GistKey | None
    created: float
    expires: float | None = None
    pinned: bool = False

    def to_json(self) -> Mapping[str, Any]:
        """The attributes by name."""
        return {
            "key": self.key.to_json() if self.key else None,
            "created": self.created,
            "expires": self.expires,
            "pinned": self.pinned,
        }

    @classmethod
    def of(cls, file: GistFile) -> "Label":
        """The label of an open file (raises GistFileError)."""
        match file.header.get("entry"):
            case {
                "key": key,
                "created": int() | float() as created,
                "expires": None | int() | float() as expires,
                "pinned": bool(pinned),
            } if math.isfinite(created) and math.isfinite(expires or 0):
                try:
                    known = None if key is None else GistKey.from_json(key)
                except ValueError as error:
                    raise damaged(file.path, str(error)) from error
                return cls(key=known, created=created, expires=expires, pinned=pinned)
        raise damaged(file.path, "it was not written by a store")


def check_id(id: str) -> str:
    """The id itself, if it is 64 hex digits: then it is safe as a file's name too.

    Raises:
        OptionError: it is not.
    """
    if not ID.fullmatch(id):
        raise OptionError(f"{id[:80]!r} is no gist id; ids are 64 hex digits (gistkit store ls)")
    return id


def content_id(gist: Gist) -> str:
    """SHA-256 of what a gist of one row is, without what was measured of it."""
    (row,) = gist.provenance
    facts = [
        *(gist.model, gist.template, gist.lengths),
        *(row.instruction_sha256, row.instruction_tokens),
        *((name, str(t.dtype), tuple(t.shape)) for name, t in sorted(gist.tensors.items())),
    ]
    sha = hashlib.sha256(json.dumps(facts).encode())
    for _, tensor in sorted(gist.tensors.items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(flat.view(torch.uint8).numpy().data)
    return sha.hexdigest()


def entry_of(id: str, header: Mapping[str, Any], label: Label, *, num_bytes: int) -> Entry:
    """The entry of a gist with this header (`Gist.header`); last used when it was made."""
    (row,) = header["provenance"]
    return Entry(
        id=id,
        keyed=label.key is not None,
        model=header["model"],
        template=header["template"],
        num_tokens=header["lengths"][0],
        num_bytes=num_bytes,
        instruction_length=row["instruction_tokens"],
        instruction_sha256=row["instruction_sha256"],
        created=label.created,
        last_used=label.created,
        expires=label.expires,
        pinned=label.pinned,
        fidelity=_score(row.get("fidelity")),
    )


def read_entry(id: str, file: GistFile, *, num_bytes: int) -> Entry:
    """What an open file says of itself, its digest not being looked at.

    Raises:
        GistFileError: it is no gist of a store, holds several, or belongs under another name.
    """
    header, label = check_front(file), Label.of(file)
    if len(header["provenance"]) != 1:
        raise damaged(file.path, "it holds several gists")
    if label.key is not None and label.key.id != id:
        raise damaged(file.path, "it is another instruction's")
    return entry_of(id, header, label, num_bytes=num_bytes)


def _score(fidelity: Mapping[str, Any] | None) -> float | None:
    score = (fidelity or {}).get("score")
    if isinstance(score, bool) or not isinstance(score, int | float):
        return None
    return float(score) if 0 <= score <= 1 else None
