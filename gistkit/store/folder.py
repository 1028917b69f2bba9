"""A folder of gist files: written whole, read checked, damaged ones put aside.

    gists/<id>.safetensors    the gists; a name is 64 hex digits and nothing else is looked at
    new/                      what is being written; left over where a writer was killed
    quarantine/               damaged files, with the time in their names

Knows nothing about indexes and quotas.
"""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gistkit.errors import GistMismatchError
from gistkit.gist import Gist, GistFile, damaged, map_bytes
from gistkit.store.entry import ID, Entry, Label, content_id, read_entry

SUFFIX = ".safetensors"
LEFTOVER = 3600.0
"""Seconds after which a file that is still being written is a killed writer's."""

Stamp = tuple[int, int, int]
"""Inode, time of change and size: another one is another file."""


@dataclass(frozen=True, slots=True)
class Found:
    """A gist that was read and checked.

    Attributes:
        gist: its tensors are views of the file.
        label: what the store wrote into it.
        entry: what it says of itself.
        stamp: of its file; None: it is in none.
    """

    gist: Gist
    label: Label
    entry: Entry
    stamp: Stamp | None


class Folder:
    """The files of a store below `root` (raises OSError where they cannot be made or used)."""

    def __init__(self, root: Path, *, make: bool = True) -> None:
        self.root = root
        self.gists, self.new, self.aside = (root / n for n in ("gists", "new", "quarantine"))
        for folder in (root, self.gists, self.new, self.aside):
            if make and not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                sync(folder.parent)
            if folder != root and folder.is_symlink():
                raise OSError(f"{folder} is a symbolic link")

    def path(self, id: str) -> Path:
        """Where the gist with this id is or would be."""
        assert ID.fullmatch(id), id
        return self.gists / f"{id}{SUFFIX}"

    def sizes(self) -> dict[str, int]:
        """Bytes of each file that has a gist's name, by its id."""
        found = {}
        with os.scandir(self.gists) as files:
            for file in files:
                id = file.name.removesuffix(SUFFIX)
                if file.name.endswith(SUFFIX) and ID.fullmatch(id):
                    with suppress(FileNotFoundError):
                        found[id] = file.stat(follow_symlinks=False).st_size
        return found

    def stamp(self, id: str) -> Stamp | None:
        """Which file is there now; None: none."""
        try:
            found = self.path(id).lstat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def read(self, id: str, stamp: Stamp | None) -> Found:
        """The gist with this id, all of it checked.

        Raises:
            OSError: it cannot be read now, which says nothing about what it holds.
            GistFileError: it is damaged, or not what its name says.
        """
        path = self.path(id)
        try:
            data = map_bytes(path, follow_symlinks=False)
        except IsADirectoryError as error:
            raise damaged(path, "it is no ordinary file") from error
        return check(id, data, path, stamp)

    def write(self, data: bytes) -> Path:
        """Write a new file that has no name yet, and see that the disk has it (raises OSError)."""
        name = self.new / secrets.token_hex(16)
        handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # as umask allows
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            name.unlink(missing_ok=True)
            raise
        return name

    def name(self, written: Path, id: str) -> None:
        """Give a written file its name, and see that the disk has that too (raises OSError)."""
        written.replace(self.path(id))
        sync(self.gists)

    def remove(self, id: str, *, durably: bool = True) -> bool:
        """Delete a gist; False: there was none (raises OSError)."""
        try:
            self.path(id).unlink()
        except FileNotFoundError:
            return False
        if durably:
            sync(self.gists)
        return True

    def set_aside(self, id: str) -> None:
        """Move a damaged file to quarantine (raises OSError)."""
        self.path(id).rename(self.aside / f"{id}.{time.time_ns()}{SUFFIX}")

    def quarantined(self) -> list[Path]:
        """The files in quarantine."""
        return sorted(self.aside.iterdir())

    def leftovers(self, now: float) -> Iterator[Path]:
        """What killed writers left."""
        for path in self.new.iterdir():
            try:
                if path.lstat().st_mtime < now - LEFTOVER:
                    yield path
            except FileNotFoundError:  # it has its name now
                continue


def check(id: str, data: Tensor | bytes, path: Path | str, stamp: Stamp | None) -> Found:
    """A gist's bytes, all of them checked (raises GistFileError)."""
    file = GistFile.of(data, path)
    entry = read_entry(id, file, num_bytes=len(data))
    gist, label = Gist.from_file(file), Label.of(file)
    if label.key is None and content_id(gist) != id:
        raise damaged(path, "it holds something else than its name says")
    if label.key is not None:
        try:
            label.key.check(gist)
        except GistMismatchError as error:
            raise damaged(path, str(error)) from error
    return Found(gist, label, entry, stamp)


def sync(folder: Path) -> None:
    """See that the disk has the names in `folder` (raises OSError)."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
