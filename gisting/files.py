"""Files that are whole or absent: write to a temporary name, flush to disk, rename.

Knows nothing about what is written.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from gisting.errors import SaveError


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file beside `path`, then rename it to `path`.

    A crash, a full disk or Ctrl-C leaves either the old file or the new one, never half of one.

    Raises:
        SaveError: the folder cannot be made, or writing or renaming failed.
    """
    target = Path(path)
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
    except OSError as error:
        reason = error.strerror or str(error)
        raise SaveError(f"could not write {target}: {reason}; free space or choose another place") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return target


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write UTF-8 `text` to `path`, whole or not at all (raises SaveError)."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    return write_atomically(path, write)
