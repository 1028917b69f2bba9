"""Files that are whole or absent: write to a temporary name, flush to disk, rename."""

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from gistkit.errors import SaveError

FAILURES = (OSError, SafetensorError)  # safetensors reports a full disk in its own way


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file beside `path`, then rename it to `path` (raises SaveError).

    A crash, a full disk or Ctrl-C leaves either the old file or the new one, never half of one.
    """
    target = Path(path)
    check_target(target)
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except FAILURES as error:
        raise _save_error(target, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return target


def check_target(target: Path) -> None:
    """Refuse a target that is a folder or a device (raises SaveError)."""
    try:
        taken = target.exists() and not target.is_file()
    except OSError as error:
        raise _save_error(target, error) from error
    if taken:
        raise SaveError(f"could not write {target}: it is not a regular file; choose another name")


def check_new(target: Path, *, force: bool) -> None:
    """As `check_target`; also refuse a file that exists, without `force`."""
    if target.exists() and not force:
        raise SaveError(
            f"{target} exists already; choose another name, or `force=True` to replace it"
        )
    check_target(target)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write `data` to `path`, whole or not at all (raises SaveError)."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    return write_atomically(path, write)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 `text` to `path`, whole or not at all (raises SaveError)."""
    return write_bytes(path, text.encode())


def write_folder(path: str | os.PathLike[str], write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary folder beside `path`, then move its files into `path`.

    Files of other names that are already in `path` stay. Nothing is moved unless all was written.

    Raises:
        SaveError: as `write_atomically`, or the writer itself failed for lack of space.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
            write(Path(name))
            for file in sorted(Path(name).rglob("*")):
                path_within = target / file.relative_to(name)
                if file.is_dir():
                    path_within.mkdir(parents=True, exist_ok=True)
                else:
                    path_within.parent.mkdir(exist_ok=True)
                    file.replace(path_within)
    except FAILURES as error:
        raise _save_error(target, error) from error
    return target


def write_new(path: Path, data: bytes | memoryview) -> None:
    """Write a file that must not exist yet, and flush it to disk (raises OSError)."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # as umask allows
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, as after a rename (raises OSError)."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _save_error(target: Path, error: Exception) -> SaveError:
    if isinstance(error, SaveError):
        return error
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    full = not isinstance(error, OSError) or error.errno in (errno.ENOSPC, errno.EDQUOT)
    advice = "free space or choose another place" if full else "choose another place"
    return SaveError(f"could not write {target}: {reason}; {advice}")
