"""Gist files that nobody vouches for: every flipped bit is noticed, and whatever else comes is
refused in one way, in little memory, and nowhere but in its file.
"""

import json
import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gistkit import Gist
from gistkit.errors import GistFileError, GistkitError
from gistkit.gist import Provenance, instruction_hash
from gistkit.store import GistStore

MORE = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def make(layers: int, heads: int, k: int, size: int) -> Gist:
    generator = torch.Generator().manual_seed(0)
    return Gist(
        {
            f"layers.{layer}.{kind}": torch.randn(1, heads, k, size, generator=generator)
            for layer in range(layers)
            for kind in ("keys", "values")
        },
        (k,),
        (Provenance(instruction_hash("Be brief."), 9),),
        model="f" * 64,
        template="decoder",
    )


SMALL = make(1, 1, 1, 2).to_bytes()


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_flipped_bit_of_a_small_file_is_noticed() -> None:
    assert Gist.from_bytes(SMALL, "small").lengths == (1,)
    for bit in range(8 * len(SMALL)):
        with pytest.raises(GistFileError):
            Gist.from_bytes(flipped(SMALL, bit), "small")


def test_flipped_bits_all_over_a_large_file_are_noticed(tmp_path: Path) -> None:
    data = bytearray(make(16, 8, 16, 64).to_bytes())
    path = tmp_path / "large.safetensors"
    path.write_bytes(data)
    assert len(data) > 2**20 and Gist.load(path).lengths == (16,)
    choose = random.Random(0)
    front = 8 * (8 + int.from_bytes(data[:8], "little"))
    bits = [choose.randrange(front) for _ in range(100)]
    bits += [choose.randrange(front, 8 * len(data)) for _ in range(300)]
    with path.open("r+b") as file:
        for bit in [*bits, 0, front - 1, front, 8 * len(data) - 1]:
            for value in (data[bit // 8] ^ (1 << bit % 8), data[bit // 8]):
                if value != data[bit // 8]:
                    file.seek(bit // 8)
                    file.write(bytes([value]))
                    file.flush()
                    with pytest.raises(GistFileError):
                        Gist.load(path)
                else:
                    file.seek(bit // 8)
                    file.write(bytes([value]))
    assert Gist.load(path).lengths == (16,)  # as it was


def test_a_flipped_bit_in_a_store_is_never_served(tmp_path: Path) -> None:
    choose = random.Random(1)
    with GistStore(tmp_path / "store", max_memory_bytes=0) as store:
        for _ in range(40):
            id = store.put(None, make(1, 1, 1, 2))
            path = tmp_path / "store" / "gists" / f"{id}.safetensors"
            data = path.read_bytes()
            path.write_bytes(flipped(data, choose.randrange(8 * len(data))))
            with pytest.raises(GistFileError):
                store.load(id)
        assert store.stats()["in_quarantine"] == 40


# What a front may say: values that sizes, names and JSON readers stumble over.
NUMBER = st.sampled_from([-1, 0, 1, 2, 7, 2**31, 2**62, 2**63, 2**64, 10**30, 1.5, True, None, "1"])
SHAPE = st.lists(NUMBER | st.sampled_from([1, 2]), max_size=5)
NAME = st.sampled_from(["a", "layers.0.keys", "../../escape", "/etc/x", "", "\x00", "é" * 50])
PLACE = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "F64", "U8", "x", 1, None]),
        "shape": SHAPE | st.just([1, 1, 1, 2]),
        "data_offsets": st.lists(NUMBER, max_size=3) | st.sampled_from([[0, 8], [8, 16], [0, 16]]),
    }
)
VALUE: Any = st.recursive(
    NUMBER | NAME | st.sampled_from([float("nan"), float("inf"), "\ud800", "0" * 64, "f" * 64]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAME, inner, max_size=3),
    max_leaves=6,
)
KNOWN = ("instruction_sha256", "instruction_tokens", "fidelity")
FIELDS = ("format_version", "model", "template", "lengths", "provenance", "digest", "entry", "new")


@st.composite
def files(draw: Any) -> bytes:
    """A true file's front with some of it replaced, or none of it, and some bytes behind."""
    length = int.from_bytes(SMALL[:8], "little")
    front, body = json.loads(SMALL[8 : 8 + length]), SMALL[8 + length :]
    header = json.loads(front["__metadata__"]["gist"])
    for field in draw(st.lists(st.sampled_from(FIELDS), max_size=2)):
        header[field] = draw(VALUE)
    if draw(st.booleans()):
        header["provenance"] = [draw(st.dictionaries(st.sampled_from(KNOWN), VALUE, max_size=3))]
    for name in draw(st.lists(NAME, max_size=2)):
        front[name] = draw(PLACE | VALUE)
    if draw(st.booleans()):
        front["layers.0.keys"] = draw(PLACE)
    front["__metadata__"] = draw(st.just({"gist": json.dumps(header)}) | VALUE)
    text = json.dumps(front).encode()
    said = draw(st.just(len(text)) | st.sampled_from([0, 1, 2**24, 2**31, 2**63, 2**64 - 1]))
    return struct.pack("<Q", said) + text + draw(st.just(body) | st.binary(max_size=32))


@MORE
@given(data=files() | st.binary(max_size=300))
@example(data=b"")
@example(data=struct.pack("<Q", 2**64 - 1))
@example(data=struct.pack("<Q", 100_000) + b"[" * 100_000)
def test_made_up_files_are_refused_in_one_way(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "inside" / "fuzzed.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(GistFileError, match=r"fuzzed.safetensors"):
            Gist.load(path)
        with pytest.raises(GistFileError):
            Gist.from_bytes(data, "upload")
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 2**20 + 40 * len(data)
    assert [p.name for p in tmp_path.iterdir()] == ["inside"]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@MORE
@given(
    provenance=st.fixed_dictionaries(
        {
            "instruction_sha256": st.just("0" * 64) | VALUE,
            "instruction_tokens": st.just(9) | VALUE,
        },
        optional={"fidelity": VALUE | st.dictionaries(NAME, VALUE)},
    ),
    names=st.lists(NAME, min_size=1, max_size=3, unique=True),
)
def test_what_can_be_loaded_can_be_kept(
    tmp_path: Path, provenance: dict[str, Any], names: list[str]
) -> None:
    """Whoever forges a file can give it a true digest, too: then all it says must be harmless."""
    tensors = {name: torch.zeros(1, 1, 1, 2) for name in names}
    forged = Gist(tensors, (1,), (Provenance(**provenance),), "f" * 64, "decoder")
    try:
        data = forged.to_bytes()
    except (ValueError, TypeError):  # safetensors or JSON cannot say that
        return
    with GistStore(tmp_path / "store") as store:
        try:
            id = store.put(None, Gist.from_bytes(data, "forged"))
        except GistkitError:
            return
        entry = store.find(id)
        assert entry is not None and len(id) == 64
        assert json.loads(json.dumps(entry.to_json(), allow_nan=False))
        assert store.load(id).provenance[0].instruction_tokens == entry.instruction_length
    assert {p.name for p in tmp_path.iterdir()} == {"store"}
