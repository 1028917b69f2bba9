import os
import stat
from pathlib import Path

import pytest

from gistkit.errors import SaveError
from gistkit.files import write_folder, write_text


def test_a_device_or_folder_is_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(SaveError, match="not a regular file"):
        write_text(pipe, "x")
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    with pytest.raises(SaveError, match="not a regular file"):
        write_text(tmp_path, "x")


def test_a_failed_write_keeps_what_was_there(tmp_path: Path) -> None:
    def fail(temporary: Path) -> None:
        (temporary / "half").write_text("x")
        raise OSError(28, "No space left on device")

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    with pytest.raises(SaveError, match="No space left on device; free space or choose another"):
        write_folder(tmp_path / "model", fail)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_freeing_space_is_advised_only_where_it_helps(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SaveError, match="; choose another place"):
        write_text(tmp_path / "file" / "below", "y")


def test_a_folder_within_is_renewed(tmp_path: Path) -> None:
    """Tokenizers with several chat templates save a folder of them."""

    def write(temporary: Path, word: str) -> None:
        (temporary / "templates").mkdir()
        (temporary / "templates" / "one").write_text(word)

    for word in ("first", "second"):
        write_folder(tmp_path / "model", lambda temporary, word=word: write(temporary, word))  # type: ignore[misc]
        assert (tmp_path / "model" / "templates" / "one").read_text() == word


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(SaveError, match="too long"):
        write_text(tmp_path / ("x" * 300), "y")
