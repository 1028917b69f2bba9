"""A gist in a store: its key (what it was made of), its entry (what is known of it), its file.

Two models, adapters, tokenizers, templates, k or instructions that differ give different keys. The
ids of the tokens are part of the key, and a store compares the whole key after it has found a hash.
"""

import hashlib
import json
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from gistkit.errors import GistMismatchError, OptionError
from gistkit.gist import Gist, GistFile, check_front, damaged

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from gistkit.model import GistModel

VERSION = 1
ID = re.compile(r"[0-9a-f]{64}")
SUFFIX = ".safetensors"

Stamp = tuple[int, int, int]
"""Inode, time of change and size of a file: another stamp is another file."""


@dataclass(frozen=True)
class GistKey:
    """The content address of one instruction's gist.

    Attributes:
        model: fingerprint of the weights.
        adapter: fingerprint of the active adapters (LoRA); "" where there is none, or merged.
        tokenizer: fingerprint of the tokenizer.
        template: name of the prompt template.
        num_tokens: k.
        tokens: ids of the instruction in its template, up to the gist tokens; P of them.
    """

    model: str
    adapter: str
    tokenizer: str
    template: str
    num_tokens: int
    tokens: tuple[int, ...]

    @classmethod
    def of(
        cls, model: "GistModel", instruction: str, num_gist_tokens: int | None = None
    ) -> "GistKey":
        """The key of what `model.compress(instruction, num_gist_tokens=...)` returns.

        Raises:
            PromptError: the instruction is empty or contains `<GIST>`.
            OptionError: k is below one.
        """
        k = model.config.default_k if num_gist_tokens is None else num_gist_tokens
        return cls(
            model=model.fingerprint,
            adapter=adapter_fingerprint(model.hf_model),
            tokenizer=tokenizer_fingerprint(model.tokenizer),
            template=model.config.template,
            num_tokens=k,
            tokens=tuple(model.encoder.instruction(instruction, k)[:-k]),
        )

    @cached_property
    def id(self) -> str:
        """64 hex digits: SHA-256 over all attributes."""
        return _sha256({"version": VERSION, **self.to_json()})

    def check(self, gist: Gist) -> None:
        """Raise GistMismatchError unless `gist` can be this key's: one row, model, template, k."""
        (row,) = check_single(gist).provenance
        for what, own, other in (
            ("model", self.model, gist.model),
            ("template", self.template, gist.template),
            ("number of gist tokens", (self.num_tokens,), gist.lengths),
            ("instruction length", len(self.tokens), row.instruction_tokens),
        ):
            if own != other:
                raise GistMismatchError(f"this gist has another {what} than its key: {other}")

    def to_json(self) -> Mapping[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "tokens": list(self.tokens)}  # `asdict` would copy each of them deeply

    @classmethod
    def from_json(cls, value: object) -> "GistKey":
        """Read what `to_json` gave, from a file that may hold anything (raises ValueError)."""
        match value:
            case {
                "model": str(model),
                "adapter": str(adapter),
                "tokenizer": str(tokenizer),
                "template": str(template),
                "num_tokens": int(k),
                "tokens": list(tokens),
                **rest,
            } if not rest and k > 0 and all(type(token) is int for token in tokens):
                return cls(model, adapter, tokenizer, template, k, tuple(tokens))
        raise ValueError("its key cannot be read")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a store knows of a gist beside its activations.

    Attributes:
        id: 64 hex digits, the content address.
        keyed: found by its `GistKey`; False: imported from a file, found by its id alone.
        model: fingerprint of the model that made it.
        num_tokens: k.
        num_bytes: of its file.
        instruction_length: P, the tokens it stands for.
        created: seconds since 1970.
        last_used: likewise; uses in other processes may arrive some seconds late.
        expires: likewise; None: never.
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
        return self.expires is not None and self.expires <= now

    def to_json(self) -> Mapping[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Record:
    """A gist as a tier has it.

    Attributes:
        key: what it answers for; None: it is found by its id alone.
        gist: its tensors may be views of `data`.
        data: its file.
        stamp: of the file in the folder; None: there is none.
    """

    key: GistKey | None
    entry: Entry
    gist: Gist
    data: bytes | memoryview
    stamp: Stamp | None = None

    @classmethod
    def of(
        cls,
        id: str,
        key: GistKey | None,
        gist: Gist,
        *,
        created: float,
        expires: float | None,
        pinned: bool,
    ) -> "Record":
        """Pack a gist into a file that says everything a store needs to know of it."""
        described = key.to_json() if key else None
        label = {"key": described, "created": created, "expires": expires, "pinned": pinned}
        data = gist.to_bytes(entry=label)
        entry = _entry(id, {**gist.header(), "entry": label}, num_bytes=len(data))
        return cls(key, entry, gist, data)

    @classmethod
    def read(cls, id: str, file: GistFile, stamp: Stamp | None = None) -> "Record":
        """Check all of a file, its digest included (raises GistFileError)."""
        key, entry = read_entry(id, file, num_bytes=len(file.data))
        gist = Gist.from_file(file)
        if key is None and content_id(gist) != id:
            raise damaged(file.path, "it holds something else than its name says")
        if key is not None:
            try:
                key.check(gist)
            except GistMismatchError as error:
                raise damaged(file.path, str(error)) from error
        return cls(key, entry, gist, file.data.numpy().data, stamp)


def read_entry(id: str, file: GistFile, *, num_bytes: int) -> tuple[GistKey | None, Entry]:
    """What the front of a file says; the digest is not checked (raises GistFileError)."""
    header = check_front(file)
    match header.get("entry"):
        case {
            "key": described,
            "created": int() | float() as created,
            "expires": None | int() | float() as expires,
            "pinned": bool(),
        } if math.isfinite(created) and math.isfinite(expires or 0):
            pass
        case _:
            raise damaged(file.path, "it was not written by a store")
    try:
        key = None if described is None else GistKey.from_json(described)
    except ValueError as error:
        raise damaged(file.path, str(error)) from error
    if len(header["provenance"]) != 1:
        raise damaged(file.path, "it holds several gists")
    if key is not None and key.id != id:
        raise damaged(file.path, "it belongs to another instruction")
    return key, _entry(id, header, num_bytes=num_bytes)


def file_name(id: str) -> str:
    assert ID.fullmatch(id), id
    return f"{id}{SUFFIX}"


def id_of(name: str) -> str | None:
    """The id in a file's name; None if it is not a gist's."""
    id = name.removesuffix(SUFFIX)
    return id if name.endswith(SUFFIX) and ID.fullmatch(id) else None


def check_id(id: str) -> str:
    """The id, if it is 64 hex digits and so safe as a file's name (raises OptionError)."""
    if not ID.fullmatch(id):
        raise OptionError(f"{id[:80]!r} is no gist id; ids are 64 hex digits (gistkit store ls)")
    return id


def check_single(gist: Gist) -> Gist:
    """The gist itself, if it has one row (raises GistMismatchError)."""
    if len(gist) != 1:
        raise GistMismatchError(f"a store keeps gists one by one, not {len(gist)} in a batch")
    return gist


def content_id(gist: Gist) -> str:
    """SHA-256 of a gist of one row, without what was measured of it."""
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


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """SHA-256 of everything that decides how text becomes ids."""
    known = _TOKENIZERS.get(tokenizer)
    if known is not None and known[0] == len(tokenizer):
        return known[1]
    from transformers import PreTrainedTokenizerFast

    if isinstance(tokenizer, PreTrainedTokenizerFast):
        facts = json.loads(tokenizer.backend_tokenizer.to_str())
        facts |= {"padding": None, "truncation": None}  # left there by the last call
    else:
        facts = {"kind": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    special = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
    found = _sha256({"facts": facts, "special": special})
    _TOKENIZERS[tokenizer] = (len(tokenizer), found)
    return found


def adapter_fingerprint(model: "PreTrainedModel") -> str:
    """SHA-256 of which adapters are active where and how strongly; "" without any.

    Their matrices are parameters and so in the model's fingerprint; scale and switches are not.
    """
    if "peft" not in sys.modules:  # adding an adapter imports it
        return ""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    facts = {
        name: {
            "active": [] if layer.disable_adapters else list(layer.active_adapters),
            "scaling": dict(layer.scaling) if isinstance(layer, LoraLayer) else {},
            "merged": list(layer.merged_adapters),
        }
        for name, layer in model.named_modules()
        if isinstance(layer, BaseTunerLayer)
    }
    return _sha256(facts) if facts else ""


_TOKENIZERS: "WeakKeyDictionary[PreTrainedTokenizerBase, tuple[int, str]]" = WeakKeyDictionary()


def _entry(id: str, header: Mapping[str, Any], *, num_bytes: int) -> Entry:
    (row,) = header["provenance"]
    label = header["entry"]
    score: Any = (row.get("fidelity") or {}).get("score")
    measured = isinstance(score, int | float) and not isinstance(score, bool) and 0 <= score <= 1
    return Entry(
        id=id,
        keyed=label["key"] is not None,
        model=header["model"],
        template=header["template"],
        num_tokens=header["lengths"][0],
        num_bytes=num_bytes,
        instruction_length=row["instruction_tokens"],
        instruction_sha256=row["instruction_sha256"],
        created=label["created"],
        last_used=label["created"],
        expires=label["expires"],
        pinned=label["pinned"],
        fidelity=float(score) if measured else None,
    )


def _sha256(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
