"""Gists as values: rows, stacks, files. Damaged files are refused, and none is half-written."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gistkit import Gist
from gistkit.errors import GistFileError, GistMismatchError, SaveError
from gistkit.gist import Prefix, Provenance, instruction_hash


def make(*lengths: int, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Gist:
    """A gist of two layers; as made by `compress`, padding (on the left) is zero."""
    generator = torch.Generator().manual_seed(seed)
    rows, width = len(lengths), max(lengths)
    known = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    tensors = {
        f"layers.{layer}.{name}": (
            torch.randn(rows, 2, width, 3, generator=generator) * known[:, None, :, None]
        ).to(dtype)
        for layer in range(2)
        for name in ("keys", "values")
    }
    provenance = tuple(Provenance(instruction_hash(str(n)), 10 + n) for n in range(rows))
    gist = Gist(tensors, lengths, provenance, model="f" * 64, template="decoder")
    return replace(gist, **changes)


def assert_same(ours: Prefix, theirs: Prefix) -> None:
    assert type(ours) is type(theirs)
    assert ours.lengths == theirs.lengths
    assert ours.provenance == theirs.provenance
    assert (ours.model, ours.template) == (theirs.model, theirs.template)
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, tensor in ours.tensors.items():
        assert tensor.dtype == theirs.tensors[name].dtype
        assert torch.equal(tensor, theirs.tensors[name]), name


def test_what_a_gist_knows() -> None:
    gist = make(2, 1)
    assert len(gist) == 2
    assert gist.num_tokens == 2
    assert gist.num_bytes == 2 * 2 * (2 * 2 * 2 * 3) * 4
    assert gist.dtype == torch.float32
    assert gist.device == torch.device("cpu")
    assert gist.mask.tolist() == [[1, 1], [0, 1]]
    assert make(2, 1, dtype=torch.bfloat16).num_bytes == gist.num_bytes // 2


def test_a_gist_shown_is_one_line() -> None:
    shown = repr(make(2, 1, dtype=torch.bfloat16))
    assert shown == (
        "<Gist: 2 of 2 tokens, 192 bytes, bfloat16 on cpu, model ffffffffffff, template decoder>"
    )


def test_rows() -> None:
    gist = make(2, 1, 3)
    assert [len(row) for row in gist] == [1, 1, 1]
    assert [row.lengths for row in gist] == [(2,), (1,), (3,)]
    assert [row.num_tokens for row in gist] == [2, 1, 3]
    for number, row in enumerate(gist):
        assert_same(row, gist[number])
        assert_same(row, gist[number - 3])
        assert row.provenance == (gist.provenance[number],)
        kept = row.num_tokens
        for name, tensor in row.tensors.items():
            assert torch.equal(tensor[0], gist.tensors[name][number, :, -kept:])


def test_selected_rows_are_padded_no_more_than_they_need() -> None:
    gist = make(2, 1, 3)
    for numbers in ([1, 0], [2, 2, 1], [1]):
        chosen = gist.select(torch.tensor(numbers))
        assert_same(chosen, Gist.stack([gist[number] for number in numbers]))


@pytest.mark.parametrize("index", [slice(0, 1), "0", 0.0])
def test_rows_go_by_number(index: Any) -> None:
    with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
        make(2, 1, 3)[index]


@pytest.mark.parametrize("index", [3, -4, 100])
def test_a_row_that_is_not_there(index: int) -> None:
    with pytest.raises(IndexError, match=f"gist {index} of 3"):
        make(2, 1, 3)[index]


def test_a_row_does_not_keep_its_batch_alive() -> None:
    row = make(*[2] * 50)[7]
    assert all(t.untyped_storage().nbytes() == t.numel() * 4 for t in row.tensors.values())


def test_stacks_are_left_padded_and_come_apart_again() -> None:
    gists = [make(2, seed=1), make(5, 1, seed=2), make(3, seed=3)]
    stack = Gist.stack(gists)
    assert stack.lengths == (2, 5, 1, 3)
    assert stack.mask.tolist() == [[0, 0, 0, 1, 1], [1] * 5, [0, 0, 0, 0, 1], [0, 0, 1, 1, 1]]
    assert all(t.shape == (4, 2, 5, 3) for t in stack.tensors.values())
    rows = [row for gist in gists for row in gist]
    for ours, theirs in zip(stack, rows, strict=True):
        assert_same(ours, theirs)


def test_anything_that_yields_gists_is_stacked() -> None:
    gist = make(2, 1, 3)
    assert_same(Gist.stack(gist), gist)
    assert_same(Gist.stack(row for row in gist), gist)


def test_a_stack_of_one_is_itself() -> None:
    assert_same(Gist.stack([make(2, 1)]), make(2, 1))


def test_a_stack_of_nothing_is_refused() -> None:
    with pytest.raises(GistMismatchError, match="no gists to stack; give at least one"):
        Gist.stack([])


@pytest.mark.parametrize(
    ("what", "other"),
    [
        ("model", make(1, model="0" * 64)),
        ("template", make(1, template="chat")),
        ("dtype", make(1, dtype=torch.bfloat16)),
    ],
)
def test_gists_that_do_not_belong_together_are_not_stacked(what: str, other: Gist) -> None:
    with pytest.raises(GistMismatchError, match=f"cannot stack gists of different {what}"):
        Gist.stack([make(1), other])


def test_one_gist_for_a_batch() -> None:
    gist = make(2)
    many = gist.expand(3)
    assert many.lengths == (2, 2, 2)
    assert all(t.shape[0] == 3 and t.stride(0) == 0 for t in many.tensors.values())  # not copied
    for row in many:
        assert_same(row, gist)
    assert gist.expand(1) is gist


def test_several_gists_are_not_spread_over_a_batch() -> None:
    with pytest.raises(GistMismatchError, match="2 gists for 3 inputs; give one gist, or one for"):
        make(1, 1).expand(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_file_holds_the_gist_bit_by_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    for number, gist in enumerate((make(2, dtype=dtype), make(5, 1, dtype=dtype))):
        path = gist.save(tmp_path / f"{number}.gist")
        assert_same(Gist.load(path), gist)
        assert_same(Gist.load(str(path)), gist)


def test_special_values_survive(tmp_path: Path) -> None:
    gist = make(1)
    odd = torch.tensor([0.0, -0.0, float("inf"), float("-inf"), 1e-45, 3.4e38]).view(1, 2, 1, 3)
    gist = replace(gist, tensors={name: odd.clone() for name in gist.tensors})
    loaded = Gist.load(gist.save(tmp_path / "odd.gist"))
    for tensor in loaded.tensors.values():
        assert torch.equal(tensor.view(torch.int32), odd.view(torch.int32))


def test_views_are_saved_as_what_they_show(tmp_path: Path) -> None:
    expanded = make(2).expand(3)
    assert_same(Gist.load(expanded.save(tmp_path / "g")), Gist.stack([make(2)] * 3))


def test_saving_makes_folders_and_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "a/b/c.gist"
    make(1).save(path)
    make(2, seed=5).save(path)
    assert_same(Gist.load(path), make(2, seed=5))
    assert [p.name for p in path.parent.iterdir()] == ["c.gist"]


def test_a_file_is_readable_like_any_other(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert make(1).save(tmp_path / "g").stat().st_mode == plain.stat().st_mode


def small_file(tmp_path: Path) -> tuple[Path, bytes]:
    gist = make(1)
    tensors = {"a": gist.tensors["layers.0.keys"]}
    path = replace(gist, tensors=tensors).save(tmp_path / "small.gist")
    return path, path.read_bytes()


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path, data = small_file(tmp_path)
    for end in range(len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(GistFileError, match=r"small.gist"):
            Gist.load(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(GistFileError):
        Gist.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda byte: byte ^ 0xFF,
        lambda byte: byte ^ 0x01,
        lambda byte: byte ^ 0x20,  # the other case of a letter
        lambda byte: 0x0A if byte != 0x0A else 0x0D,  # white space means nothing in JSON
        lambda byte: 0x30 if byte != 0x30 else 0x31,
    ],
    ids=["all bits", "lowest bit", "case", "newline", "zero"],
)
def test_any_one_byte_changed_is_noticed(tmp_path: Path, change: Callable[[int], int]) -> None:
    path, data = small_file(tmp_path)
    assert Gist.load(path).lengths == (1,)
    for place, byte in enumerate(data):
        path.write_bytes(data[:place] + bytes([change(byte)]) + data[place + 1 :])
        with pytest.raises(GistFileError):
            Gist.load(path)


def with_header(path: Path, header: object) -> Path:
    text = header if isinstance(header, str) else json.dumps(header)
    save_file({"a": torch.zeros(1, 2, 1, 3)}, path, metadata={"gist": text})
    return path


GOOD = {
    "format_version": 1,
    "model": "f" * 64,
    "template": "decoder",
    "lengths": [1],
    "provenance": [{"instruction_sha256": "0" * 64, "instruction_tokens": 3}],
    "digest": "0" * 64,
}


def test_another_format_version_is_named(tmp_path: Path) -> None:
    path = with_header(tmp_path / "new.gist", {"format_version": 2, "novelty": True})
    with pytest.raises(GistFileError, match=r"new.gist has gist format version 2, .* reads 1;"):
        Gist.load(path)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "no json",
        "[]",
        "3",
        "null",
        "[" * 100_000,
        {},
        {"format_version": 1},
        {**GOOD, "more": 1},
        {**GOOD, "lengths": []},
        {**GOOD, "lengths": [0]},
        {**GOOD, "lengths": [True]},
        {**GOOD, "lengths": ["1"]},
        {**GOOD, "lengths": [10**30]},
        {**GOOD, "lengths": [1, 1]},
        {**GOOD, "provenance": [{}]},
        {**GOOD, "provenance": [1]},
        {**GOOD, "model": None},
        {**GOOD, "template": 1},
        {**GOOD, "digest": None},
        {**GOOD, "digest": ""},
        {**GOOD, "digest": "\ud800"},
        GOOD,
    ],
    ids=lambda header: str(header)[:30],
)
def test_a_forged_header_is_refused(tmp_path: Path, header: object) -> None:
    with pytest.raises(GistFileError, match=r"forged.gist is damaged"):
        Gist.load(with_header(tmp_path / "forged.gist", header))


def test_other_files_are_not_gists(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(GistFileError, match="is not a gist file; compress an instruction"):
        Gist.load(path)
    for content in (b"", b"hello", b"\xff" * 100, b"\x80\x04K\x01."):  # the last is a pickle
        path.write_bytes(content)
        with pytest.raises(GistFileError, match="is damaged"):
            Gist.load(path)


def test_tensors_of_integers_are_refused(tmp_path: Path) -> None:
    gist = make(1)
    whole = {name: t.long() for name, t in gist.tensors.items()}
    path = replace(gist, tensors=whole).save(tmp_path / "g")
    with pytest.raises(GistFileError, match="not floating point"):
        Gist.load(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(
        GistFileError,
        match=r"no gist file at .*nothing.gist; compress an instruction",
    ):
        Gist.load(tmp_path / "nothing.gist")
    with pytest.raises(GistFileError, match="no gist file at"):
        Gist.load(tmp_path)


def full_disk(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_a_full_disk_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = make(1).save(tmp_path / "g")
    monkeypatch.setattr(Path, step, full_disk)
    with pytest.raises(SaveError, match=r"could not write .*/g: No space left on device; free"):
        make(2, seed=9).save(path)
    with pytest.raises(SaveError):
        make(2, seed=9).save(tmp_path / "new")
    monkeypatch.undo()
    assert_same(Gist.load(path), make(1))
    assert [p.name for p in tmp_path.iterdir()] == ["g"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_truly_full_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's own error, as far as it can be had without mounting a disk."""

    def write(self: Path, data: bytes) -> int:
        with Path("/dev/full").open("wb", buffering=0) as device:
            return device.write(data)

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(SaveError, match="No space left on device"):
        make(1).save(tmp_path / "g")
    assert list(tmp_path.iterdir()) == []


def test_interrupting_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(1).save(tmp_path / "g")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"could not write .*/file/g"):
        make(1).save(tmp_path / "file/g")
    with pytest.raises(SaveError, match="could not write"):
        make(1).save(tmp_path)  # a folder
