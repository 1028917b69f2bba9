"""What a tier of a store does, and the tier at a URL."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from gistkit.errors import GistFileError, GistkitError, MissingExtraError, OptionError, SaveError
from gistkit.gist import GistFile, front_length
from gistkit.store.entry import SUFFIX, Entry, Record, file_name, id_of, read_entry

MAX_OBJECT = 2**32
"""Bytes; a larger object is no gist."""


class Tier(Protocol):
    """A place for gists, found by id."""

    @property
    def name(self) -> str:
        """Hits are counted as hits_<name>."""

    def read(self, id: str) -> Record | None:
        """A gist, checked; None: there is none, or it expired (raises GistFileError)."""

    def write(self, record: Record) -> Record | None:
        """Store a gist, and return it as it is stored (raises SaveError)."""

    def remove(self, id: str) -> bool:
        """Delete a gist; False: there was none (raises SaveError)."""


class Remote:
    """The objects below a URL, in a bucket or wherever fsspec goes, named as a folder's files are.

    They are written and read whole; there is no index.
    """

    name = "remote"

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

    def read(self, id: str) -> Record | None:
        data = self._bytes(id)
        record = None if data is None else self._checked(id, data)
        return None if record is None or record.entry.expired(time.time()) else record

    def write(self, record: Record) -> Record:
        with self._saving():
            self._make("gists")
            self._fs.pipe_file(self._path(record.entry.id), bytes(record.data))
        return record

    def remove(self, id: str) -> bool:
        path = self._path(id)
        with self._saving():
            try:
                if not self._fs.exists(path):
                    return False
                self._fs.rm_file(path)
            except FileNotFoundError:
                return False
        return True

    def find(self, id: str) -> Entry | None:
        """What the first bytes of a gist say; None: there is none (raises GistFileError)."""
        path = self._path(id)
        with self._reading():
            try:
                size = self._fs.info(path)["size"]
                length = front_length(self._fs.cat_file(path, start=0, end=8))
                front = bytes(self._fs.cat_file(path, start=0, end=min(length, size)))
            except FileNotFoundError:
                return None
        with suppress(GistFileError):
            return read_entry(id, GistFile.of(front, path, size=size), num_bytes=size)[1]
        return None

    def ids(self) -> set[str]:
        """Of all objects that have a gist's name (raises GistFileError)."""
        with self._reading():
            self._fs.invalidate_cache()
            try:
                paths = self._fs.ls(f"{self._root}/gists", detail=False)
            except FileNotFoundError:
                return set()
        ids = (id_of(str(path).rsplit("/", 1)[-1]) for path in paths)
        return {id for id in ids if id is not None}

    def verify(self) -> tuple[set[str], set[str]]:
        """Read everything; the ids that were read, and the damaged ones, now in quarantine."""
        ids, damaged = self.ids(), set()
        for id in ids:
            data = self._bytes(id)
            try:
                _ = None if data is None else self._checked(id, data)
            except GistFileError:
                damaged.add(id)
                with self._saving():
                    self._make("quarantine")
                    target = f"{self._root}/quarantine/{id}.{time.time_ns()}{SUFFIX}"
                    self._fs.mv(self._path(id), target)
        return ids, damaged

    def _bytes(self, id: str) -> bytes | None:
        path = self._path(id)
        with self._reading():
            try:
                if self._fs.info(path)["size"] > MAX_OBJECT:
                    raise GistFileError(f"{self.url}/{id} is too large to be a gist")
                return bytes(self._fs.cat_file(path))
            except FileNotFoundError:
                return None

    def _checked(self, id: str, data: bytes) -> Record:
        return Record.read(id, GistFile.of(data, f"{self.url}/gists/{file_name(id)}"))

    def _path(self, id: str) -> str:
        return f"{self._root}/gists/{file_name(id)}"

    def _make(self, folder: str) -> None:
        if self._has_folders:
            self._fs.makedirs(f"{self._root}/{folder}", exist_ok=True)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except GistkitError:
            raise
        except Exception as error:
            raise GistFileError(f"the store cannot be read: {self._message(error)}") from error

    @contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise SaveError(f"the store cannot be written: {self._message(error)}") from error

    def _message(self, error: Any) -> str:
        return f"{self.url}: {' '.join(str(error).split()) or type(error).__name__}"
