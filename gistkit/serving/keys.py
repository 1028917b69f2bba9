"""API keys: who may do what. The file holds names, scopes and SHA-256 hashes, never a key.

    [{"name": "shop", "sha256": "<64 hex digits>", "scopes": ["chat", "gists:read"]}]

Keys are 256 random bits, which nobody guesses from their hash: a slow hash is for passwords.
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
"""Paths that need no key; so does the page's folder: browsers send none for a page."""

PAGE = "/page/"
ANY = ""
"""The scope of what any key may do."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Key:
    """Somebody's key."""

    name: str
    sha256: str
    scopes: tuple[str, ...] = SCOPES

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise OptionError(
                f"{self.name[:80]!r} is no name for a key; use letters, digits and ._-"
            )
        unknown = [scope for scope in self.scopes if scope not in SCOPES]
        if unknown or not self.scopes:
            named = f"unknown scope {unknown[0]!r}" if unknown else "a key without scopes"
            raise OptionError(f"{named}; choose from {', '.join(SCOPES)}")


@dataclass(frozen=True, slots=True)
class Keys:
    """All keys of a server."""

    keys: tuple[Key, ...]

    @classmethod
    def read(cls, path: Path) -> "Keys":
        """The keys in a file.

        Raises:
            DataError: it cannot be read, or is no file of keys, or an empty one.
        """
        try:
            rows = json.loads(path.read_bytes())
        except OSError as error:
            raise DataError(
                f"no key file at {path}: {error.strerror}; gistkit serve --new-key makes one"
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is no JSON ({error})") from error
        if not isinstance(rows, list) or not rows:
            raise DataError(f"{path} holds no list of keys; gistkit serve --new-key makes one")
        keys = tuple(_key(path, number, row) for number, row in enumerate(rows, 1))
        if len({key.name for key in keys}) < len(keys):
            raise DataError(f"{path} has two keys of one name")
        return cls(keys)

    def find(self, token: str) -> Key | None:
        """Whose key this is. All are compared, and each in constant time."""
        digest = _sha256(token)
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found


def new_key(path: Path, name: str, scopes: Collection[str]) -> str:
    """Make a key, put its hash into the file, and return it: it cannot be had again.

    Raises:
        OptionError: no such scope, or the name is taken or no name.
        DataError, SaveError: the file cannot be read or written.
    """
    token = f"gist-{secrets.token_urlsafe(32)}"
    key = Key(name, _sha256(token), tuple(scopes) or SCOPES)
    keys: Sequence[Key] = Keys.read(path).keys if path.exists() else ()
    if any(other.name == name for other in keys):
        raise OptionError(f"{path} has a key named {name!r} already; take its line out first")
    lines = ",\n".join(
        json.dumps({"name": one.name, "sha256": one.sha256, "scopes": list(one.scopes)})
        for one in (*keys, key)
    )
    write_bytes(path, f"[\n{lines}\n]\n".encode())
    return token


def scope_of(method: str, path: str) -> str | None:
    """What a request needs; None: nothing. What is not known here needs a key all the same."""
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
            len(row) == 3 and _HASH.fullmatch(digest) and all(type(one) is str for one in scopes)
        ):
            try:
                return Key(name, digest, tuple(scopes))
            except OptionError as error:
                raise DataError(f"{path}, key {number}: {error}") from error
    raise DataError(f"{path}, key {number}: expected name, sha256 (64 hex digits) and scopes")
