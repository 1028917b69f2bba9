"""Gist files in a bucket, or wherever fsspec goes: whole objects, written and read at once.

Knows nothing about indexes: the objects are all there is. They are named as a folder's files are.
"""

import hashlib
import os
import time
from pathlib import Path
from typing import Any

from gistkit.errors import GistFileError, MissingExtraError, OptionError
from gistkit.gist import GistFile, front_length
from gistkit.store.entry import ID, Entry, read_entry
from gistkit.store.folder import SUFFIX, Found, check

MAX_OBJECT = 2**32
"""Bytes; a larger object is no gist."""


class RemoteError(Exception):
    """The remote place did not do what it was asked; the caller decides what that means."""


class Remote:
    """The objects below a URL.

    Raises:
        OptionError: no such kind of URL.
        MissingExtraError: what this kind needs is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise MissingExtraError("fsspec", "remote") from error
        try:
            self._fs, root = url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise MissingExtraError(f"what {url.split('://')[0]}:// needs", "remote") from error
        except Exception as error:  # fsspec's drivers raise what they like
            raise OptionError(f"{url} is no place for a store: {error}") from error
        self.url = url.rstrip("/")
        self._root = root.rstrip("/")
        # in a bucket there are no folders, and `makedirs` would make a bucket that is misspelt
        self._has_folders = root.startswith("/")

    def read(self, id: str) -> bytes | None:
        """A gist's bytes; None: there is no such object (raises RemoteError)."""
        path = self._path(id)
        try:
            if self._fs.info(path)["size"] > MAX_OBJECT:
                raise RemoteError(f"{self.url}/{id} is too large to be a gist")
            return bytes(self._fs.cat_file(path))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._error(error) from error

    def entry(self, id: str) -> Entry | None:
        """What a gist says of itself, from its first bytes; None: none, or not a gist's.

        Raises:
            RemoteError: it cannot be asked.
        """
        path = self._path(id)
        try:
            size = self._fs.info(path)["size"]
            length = front_length(self._fs.cat_file(path, start=0, end=8))
            front = bytes(self._fs.cat_file(path, start=0, end=min(length, size)))
            file = GistFile.of(front, path, size=size)
            return read_entry(id, file, num_bytes=size)
        except (FileNotFoundError, GistFileError):
            return None
        except Exception as error:
            raise self._error(error) from error

    def write(self, id: str, data: bytes) -> None:
        """Keep an object; it is there, whole, when this returns (raises RemoteError)."""
        try:
            self._make(self._folder)
            self._fs.pipe_file(self._path(id), data)
        except Exception as error:
            raise self._error(error) from error

    def remove(self, id: str) -> bool:
        """Delete an object; False: there was none (raises RemoteError)."""
        try:
            if not self._fs.exists(self._path(id)):
                return False
            self._fs.rm_file(self._path(id))
        except FileNotFoundError:
            return False
        except Exception as error:
            raise self._error(error) from error
        return True

    def set_aside(self, id: str) -> None:
        """Move a damaged object to quarantine (raises RemoteError)."""
        target = f"{self._root}/quarantine/{id}.{time.time_ns()}{SUFFIX}"
        try:
            self._make(f"{self._root}/quarantine")
            self._fs.mv(self._path(id), target)
        except Exception as error:
            raise self._error(error) from error

    def ids(self) -> set[str]:
        """Of all objects that have a gist's name (raises RemoteError)."""
        try:
            self._fs.invalidate_cache()
            names = [
                str(name).rsplit("/", 1)[-1] for name in self._fs.ls(self._folder, detail=False)
            ]
        except FileNotFoundError:
            return set()
        except Exception as error:
            raise self._error(error) from error
        ids = {name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)}
        return {id for id in ids if ID.fullmatch(id)}

    def check(self, id: str, data: bytes) -> Found:
        """An object's bytes, all of them checked (raises GistFileError)."""
        return check(id, data, f"{self.url}/gists/{id}{SUFFIX}", None)

    def _make(self, folder: str) -> None:
        if self._has_folders:
            self._fs.makedirs(folder, exist_ok=True)

    @property
    def _folder(self) -> str:
        return f"{self._root}/gists"

    def _path(self, id: str) -> str:
        assert ID.fullmatch(id), id
        return f"{self._folder}/{id}{SUFFIX}"

    def _error(self, error: Any) -> RemoteError:
        if isinstance(error, RemoteError):
            return error
        return RemoteError(f"{self.url}: {' '.join(str(error).split()) or type(error).__name__}")


def cache_of(url: str) -> Path:
    """The folder that keeps copies of a URL's gists where the caller names none."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "gistkit" / "store" / hashlib.sha256(url.encode()).hexdigest()[:16]
