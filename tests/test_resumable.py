"""Journals: whole lines only, settings that must match, one writer at a time."""

from pathlib import Path

import pytest

from gistkit.errors import SaveError
from gistkit.resumable import Journal, differences

SETTINGS = {"k": 2, "data": "abc", "shape": (1, 2)}


def test_what_was_appended_is_there_for_the_next_run(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out.json"
    with Journal(target, SETTINGS) as journal:
        assert (journal.entries, journal.found) == ([], None)
        assert not target.parent.exists()
        journal.append({"row": 0}, {"row": 1, "text": "où"})
    with Journal(target, SETTINGS) as journal:
        assert journal.entries == [{"row": 0}, {"row": 1, "text": "où"}]
        journal.append({"row": 2})
        assert len(journal.entries) == 3
        journal.remove()
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("tail", [b'{"row": 1, "te', b"\0\0\0", b'{"row": 1}'])
def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path, tail: bytes) -> None:
    target = tmp_path / "out"
    with Journal(target, SETTINGS) as journal:
        journal.append({"row": 0})
    with journal.path.open("ab") as file:
        file.write(tail)
    with Journal(target, SETTINGS) as journal:
        assert journal.entries == [{"row": 0}]
        journal.append({"row": 1})
    assert Journal(target, SETTINGS).entries == [{"row": 0}, {"row": 1}]


def test_other_settings_are_refused_or_start_over(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with Journal(target, SETTINGS) as journal:
        journal.append({"row": 0})
    other = SETTINGS | {"k": 4}
    with pytest.raises(SaveError, match=r"under other settings \(k was 2, not 4\).*`force=True`"):
        Journal(target, other)
    assert Journal(target, other, fixed=["data"]).entries == [{"row": 0}]
    assert Journal(target, SETTINGS, force=True).entries == [{"row": 0}]
    before = journal.path.read_bytes()
    with Journal(target, other, force=True) as journal:
        assert journal.entries == []
        journal.open()
    assert journal.path.read_bytes() == before  # until there is something to replace it
    with Journal(target, other, force=True) as journal:
        journal.append({"row": 5})
    assert Journal(target, other).entries == [{"row": 5}]


@pytest.mark.parametrize("content", ["{}\n", "[1]\n", "3\n", '{"settings": 3}\n', "x\n", "\n{}\n"])
def test_what_is_no_journal_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "out.partial").write_text(content)
    with pytest.raises(SaveError, match="`force=True`"):
        Journal(tmp_path / "out", SETTINGS)
    assert Journal(tmp_path / "out", SETTINGS, force=True).entries == []


def test_without_settings_the_journal_becomes_the_file(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    with Journal(target) as journal:
        journal.append({"a": 1})
        journal.append({"a": 2})
        journal.finish()
    assert target.read_text() == '{"a": 1}\n{"a": 2}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    with Journal(target) as journal:
        journal.restart()
        journal.finish()
    assert target.read_text() == ""


def test_one_run_at_a_time(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with Journal(target, SETTINGS) as first:
        first.append({"row": 0})
        with pytest.raises(SaveError, match="another run is writing"):
            Journal(target, SETTINGS).append({"row": 1})
    late = Journal(target, SETTINGS)
    with Journal(target, SETTINGS) as second:
        second.append({"row": 1})
    with pytest.raises(SaveError, match="another run is writing"):
        late.open()  # it has not read that line
    assert len(Journal(target, SETTINGS).entries) == 2


def test_a_journal_without_a_line_is_not_left(tmp_path: Path) -> None:
    with Journal(tmp_path / "out") as journal:
        journal.open()
    assert list(tmp_path.iterdir()) == []


def test_names_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match="could not write"):
        Journal(tmp_path / "file" / "out", SETTINGS).open()
    with pytest.raises(SaveError, match="could not write"):
        Journal(tmp_path / ("x" * 250), SETTINGS)
    (tmp_path / "folder.partial").mkdir()
    with pytest.raises(SaveError, match="not a regular file"):
        Journal(tmp_path / "folder", SETTINGS)


def test_an_unreadable_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(SaveError, match=r"cannot be read \(Permission denied\)"):
        Journal(tmp_path / "out", SETTINGS)


def test_differences_name_both_values() -> None:
    found = differences({"k": 2, "seed": 0, "digest": "a" * 64}, {"k": 4, "seed": 0, "path": "b"})
    assert found == "k was 2, not 4, path was none, not b, digest was aaaaaaaaaaaa..., not none"
