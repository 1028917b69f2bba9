"""API keys and their scopes. The key file holds names, scopes and SHA-256 hashes, never a key.

    [{"name": "shop", "sha256": "<64 hex digits>", "scopes": ["chat", "gists:read"]}]

Keys are 256 random bits, which cannot be guessed from a hash: slow hashes are for passwords.
"""

import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gistkit.errors import DataError, OptionError
from gistkit.files import write_bytes

SCOPES = ("chat", "gists:read", "gists:write", "metrics")
OPEN = ("/health/live", "/health/ready", "/")
"""Paths that need no key. Nor does the page's folder: browsers send none when they load a page."""

PAGE = "/page/"
ANY = ""  # any key will do

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Key:
    """One key (raises OptionError for an invalid name or scope)."""

    name: str
    sha256: str
    scopes: tuple[str, ...] = SCOPES

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise OptionError(
                f"{self.name[:80]!r} is not a valid key name; use letters, digits and ._-"
            )
        unknown = [scope for scope in self.scopes if scope not in SCOPES]
        if unknown or not self.scopes:
            named = f"unknown scope {unknown[0]!r}" if unknown else "a key without scopes"
            raise OptionError(f"{named}; choose from {', '.join(SCOPES)}")


@dataclass(frozen=True, slots=True)
class Keys:
    keys: tuple[Key, ...]

    @classmethod
    def read(cls, path: Path) -> "Keys":
        """The keys in a file (raises DataError: it has none, or is no key file)."""
        try:
            rows = json.loads(path.read_bytes())
        except OSError as error:
            raise DataError(
                f"no key file at {path}: {error.strerror}; create one with `new_key`"
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is not valid JSON ({error})") from error
        if not isinstance(rows, list) or not rows:
            raise DataError(f"{path} holds no list of keys; create one with `new_key`")
        keys = tuple(_key(path, number, row) for number, row in enumerate(rows, 1))
        if len({key.name for key in keys}) < len(keys):
            raise DataError(f"{path} has two keys with the same name")
        return cls(keys)

    def find(self, token: str) -> Key | None:
        """The key of a token, or None. Every key is compared, each in constant time."""
        digest = _sha256(token)
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found


def new_key(path: Path, name: str, scopes: Collection[str]) -> str:
    """Create a key, add its hash to the file, and return it; it cannot be recovered later.

    Raises:
        OptionError: an unknown scope, or the name is taken or invalid.
        DataError, SaveError: the file cannot be read or written.
    """
    token = f"gist-{secrets.token_urlsafe(32)}"
    key = Key(name, _sha256(token), tuple(scopes) or SCOPES)
    keys: Sequence[Key] = Keys.read(path).keys if path.exists() else ()
    if any(other.name == name for other in keys):
        raise OptionError(f"{path} already has a key named {name!r}; remove its line first")
    lines = ",\n".join(
        json.dumps({"name": row.name, "sha256": row.sha256, "scopes": list(row.scopes)})
        for row in (*keys, key)
    )
    write_bytes(path, f"[\n{lines}\n]\n".encode())
    return token


def scope_of(method: str, path: str) -> str | None:
    """The scope that a request needs; None: no key. Unknown paths need a key, too."""
    if path in OPEN or path.startswith(PAGE):
        return None
    if path == "/metrics":
        return "metrics"
    if path == "/v1/gists" or path.startswith("/v1/gists/"):
        return "gists:read" if method == "GET" else "gists:write"
    return "chat" if path.startswith("/v1/") else ANY


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def _key(path: Path, number: int, row: Any) -> Key:
    match row:
        case {"name": str(name), "sha256": str(digest), "scopes": list(scopes)} if (
            len(row) == 3
            and _HASH.fullmatch(digest)
            and all(type(scope) is str for scope in scopes)
        ):
            try:
                return Key(name, digest, tuple(scopes))
            except OptionError as error:
                raise DataError(f"{path}, key {number}: {error}") from error
    raise DataError(f"{path}, key {number}: expected name, sha256 (64 hex digits) and scopes")
