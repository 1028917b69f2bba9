"""A gist file: every bit is guarded, every size is checked, and nothing in it can do harm."""

import json
import random
import resource
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gistkit.errors import GistFileError
from gistkit.gist import MAX_HEADER, Gist, GistFile, Provenance, read_file


def gist_of(*, size: int, dtype: torch.dtype = torch.float32, layers: int = 1) -> Gist:
    tensors = {f"layers.{n}.keys": torch.randn(1, 1, 1, size).to(dtype) for n in range(layers)}
    return Gist(tensors, (1,), (Provenance("0" * 64, 3),), "f" * 64, "decoder")


def refused(data: bytes | bytearray) -> bool:
    try:
        Gist.from_bytes(bytes(data), "bits")
    except GistFileError as error:
        assert "\n" not in str(error)
        return True
    return False


def flip(data: bytearray, bit: int) -> None:
    data[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("labelled", [False, True])
def test_every_bit_of_a_small_file_is_guarded(dtype: torch.dtype, labelled: bool) -> None:
    gist = gist_of(size=3, dtype=dtype)
    data = bytearray(gist.to_bytes(entry={"key": None} if labelled else None))
    assert not refused(data)
    assert b"  " in data[8:] or len(data) % 8 in (4, 6)  # there is padding, too
    for bit in range(len(data) * 8):
        flip(data, bit)
        assert refused(data), (bit // 8, bit % 8)
        flip(data, bit)
    assert not refused(data)


def test_sampled_bits_of_a_large_file_are_guarded() -> None:
    data = bytearray(gist_of(size=2**14, layers=8).to_bytes())
    assert len(data) > 2**19
    chosen = random.Random(0).sample(range(len(data) * 8), 300)
    for bit in chosen:
        flip(data, bit)
        assert refused(data), bit
        flip(data, bit)
    assert not refused(data)


def front(described: object, metadata: object = None) -> bytes:
    header = json.dumps(
        {"__metadata__": metadata, **described} if isinstance(described, dict) else described
    ).encode()
    return struct.pack("<Q", len(header)) + header


GIST = {"gist": json.dumps({"format_version": 1})}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        b"\0" * 8,
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", MAX_HEADER + 1) + b" " * (MAX_HEADER + 1),
        struct.pack("<Q", 4) + b"null",
        front([]),
        front({}, "text"),
        front({}, {"gist": 3}),
        front({}, {"gist": "[" * 50_000}),
        front({"a": None}, GIST),
        front({"a": {"dtype": "F32", "shape": [1, 1, 2**62], "data_offsets": [0, 4]}}, GIST),
        front({"a": {"dtype": "F32", "shape": [1, -1, -1], "data_offsets": [0, 4]}}, GIST),
        front({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, GIST) + b"abcd",
        front({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}, GIST),
        front({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, GIST),
        front({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, GIST) + b"abcdefgh",
        front({"a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}, GIST) + b"abcdefgh",
        front({"a": {"dtype": [], "shape": [1], "data_offsets": [0, 8]}}, GIST) + b"abcdefgh",
        front({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, GIST)
        + b"abcd",
    ],
    ids=lambda data: repr(data[8:60]),
)
def test_sizes_that_do_not_fit_are_refused(data: bytes) -> None:
    assert refused(data)


def test_a_file_of_holes_takes_no_memory(tmp_path: Path) -> None:
    """A header may claim what it likes, and a file may be as long as it claims."""
    path, size = tmp_path / "sparse", 2**35
    start = front(
        {"a": {"dtype": "F32", "shape": [1, 1, 1, size // 4], "data_offsets": [0, size]}}, GIST
    )
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(GistFileError, match=r"lacks fields|allocate"):
        Gist.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_files_that_were_read_keep_no_descriptor_and_are_private(tmp_path: Path) -> None:
    path = gist_of(size=3).save(tmp_path / "g")
    folder = Path("/proc/self/fd")
    before = len(list(folder.iterdir())) if folder.exists() else 0
    held = [Gist.from_file(GistFile.open(path)) for _ in range(50)]
    assert not folder.exists() or len(list(folder.iterdir())) == before
    held[0].tensors["layers.0.keys"].zero_()
    assert held[1].tensors["layers.0.keys"].any()
    assert Gist.load(path).tensors["layers.0.keys"].any()


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(gist_of(size=3).save(tmp_path / "g"))
    for name in ("pipe", "link", "."):
        with pytest.raises(OSError, match="no regular file"):
            read_file(tmp_path / name, follow_symlinks=False)
    assert Gist.load(tmp_path / "link").lengths == (1,)


FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(FUZZ, max_examples=20_000)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


def mutated(seed: bytes) -> st.SearchStrategy[bytes]:
    """Bytes cut, overwritten and inserted at any place."""

    def apply(changes: list[tuple[int, int, bytes]]) -> bytes:
        data = bytearray(seed)
        for place, cut, text in changes:
            place %= len(data) + 1
            data[place : place + cut] = text
        return bytes(data)

    change = st.tuples(st.integers(0, 2**20), st.integers(0, 40), st.binary(max_size=40))
    return st.lists(change, min_size=1, max_size=4).map(apply)


def field() -> st.SearchStrategy[object]:
    place = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "F8"]) | JSON,
            "shape": st.lists(st.integers(-1, 2**40), max_size=5) | JSON,
            "data_offsets": st.lists(st.integers(-8, 2**40), max_size=3) | JSON,
        }
    )
    return place | JSON


def forged() -> st.SearchStrategy[bytes]:
    """Files with well-formed fronts that lie."""
    metadata = st.dictionaries(st.sampled_from(["gist", "x"]), JSON.map(json.dumps) | JSON) | JSON
    described = st.dictionaries(st.text(max_size=5), field(), max_size=4)
    return st.tuples(described, metadata, st.binary(max_size=64)).map(
        lambda parts: front(parts[0], parts[1]) + parts[2]
    )


SEED = gist_of(size=3).to_bytes(
    entry={"key": None, "created": 1.0, "expires": None, "pinned": True}
)


@FUZZ
@given(mutated(SEED) | forged() | st.binary(max_size=200))
def test_fuzzed_files_are_refused_in_one_line(data: bytes) -> None:
    assert refused(data) or data == SEED


@pytest.mark.slow
@MANY
@given(mutated(SEED) | forged() | st.binary(max_size=200))
def test_many_fuzzed_files_are_refused_in_one_line(data: bytes) -> None:
    assert refused(data) or data == SEED
