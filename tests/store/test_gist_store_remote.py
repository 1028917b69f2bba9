"""Remote places: fsspec's memory, and S3's protocol spoken by moto on loopback."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from moto.server import ThreadedMotoServer

from gistkit.errors import GistFileError, MissingExtraError, OptionError, SaveError
from gistkit.gist import Gist
from gistkit.store import GistKey, GistStore
from tests.store.store_pairs import holds

Make = Callable[..., tuple[GistKey, Gist]]
Open = Callable[[str], GistStore]


@pytest.fixture
def point_s3_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Has s3:// mean this endpoint; connections to it end with the test."""
    from fsspec.asyn import sync
    from s3fs import S3FileSystem

    def point(endpoint: str) -> None:
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            monkeypatch.setenv(name, value)

    S3FileSystem.clear_instance_cache()
    yield point
    # Left to itself, s3fs gives closing a tenth of a second: on a busy machine sockets stay open.
    for opened in S3FileSystem._cache.values():
        sync(opened.loop, opened.s3.close)
    S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest) -> str:
    bucket = f"bucket-{uuid4().hex}"
    if request.param == "s3":
        import fsspec

        request.getfixturevalue("point_s3_at")(request.getfixturevalue("s3"))
        fsspec.filesystem("s3").mkdir(bucket)
    return f"{request.param}://{bucket}/gists of mine"


@pytest.fixture
def at(url: str, tmp_path: Path) -> Open:
    """A store of the one remote place, with a local cache of that name."""
    return lambda name: GistStore(url, cache_dir=tmp_path / name)


def objects(url: str, below: str = "gists") -> list[str]:
    from fsspec.core import url_to_fs

    fs, root = url_to_fs(url)
    fs.invalidate_cache()
    return sorted(str(path) for path in fs.glob(f"{root}/{below}/*"))


def overwrite(url: str, path: str, data: bytes) -> None:
    from fsspec.core import url_to_fs

    url_to_fs(url)[0].pipe_file(path, data)


def content(url: str, path: str) -> bytes:
    from fsspec.core import url_to_fs

    return bytes(url_to_fs(url)[0].cat_file(path))


def test_what_one_machine_puts_another_gets(at: Open, pair: Make) -> None:
    key, gist = pair(7)
    one, other = at("one"), at("other")
    assert other.get(key) is None
    assert one.put(key, gist) == key.id
    assert holds(other.get(key), 7)
    assert holds(other.load(key.id), 7)
    assert other.stats()["hits_remote"] == 1, "the second time it is in the local cache"
    assert holds(at("third").load(key.id), 7)


def test_a_lost_cache_loses_nothing(at: Open, pair: Make) -> None:
    keys = [at("one").put(*pair(number)) for number in range(3)]
    fresh = at("fresh")
    assert {entry.id for entry in fresh.entries()} == set(keys)
    assert fresh.verify() == {"checked": 3, "damaged": []}
    assert all(holds(fresh.get(pair(number)[0]), number) for number in range(3))


def test_pins_and_times_travel(at: Open, pair: Make) -> None:
    key, gist = pair()
    at("one").put(key, gist, pinned=True, ttl=1000)
    found = at("other").find(key.id)
    assert found is not None and found.pinned and found.expires is not None


def test_what_is_removed_is_gone_for_newcomers(at: Open, url: str, pair: Make) -> None:
    key, gist = pair()
    one = at("one")
    one.put(key, gist)
    assert one.remove(key.id)
    assert not one.remove(key.id)
    assert objects(url) == []
    assert at("other").get(key) is None
    assert at("other").entries() == []


@pytest.mark.parametrize("kind", ["flipped", "cut", "empty", "foreign"])
def test_a_damaged_object_is_never_served(at: Open, url: str, pair: Make, kind: str) -> None:
    key, gist = pair(1)
    at("one").put(key, gist)
    (path,) = objects(url)
    data = content(url, path)
    overwrite(
        url,
        path,
        {
            "flipped": data[:-1] + bytes([data[-1] ^ 1]),
            "cut": data[: len(data) // 2],
            "empty": b"",
            "foreign": pair(2)[1].to_bytes(),
        }[kind],
    )
    other = at("other")
    assert other.get(key) is None
    assert other.stats()["remote_errors"] == 1
    assert other.verify()["damaged"] == [key.id]
    assert objects(url) == []
    assert len(objects(url, "quarantine")) == 1
    other.put(key, gist)
    assert holds(at("third").get(key), 1), "made anew, it is served again"


def test_other_peoples_objects_are_left_alone(at: Open, url: str, pair: Make) -> None:
    key, gist = pair()
    one = at("one")
    one.put(key, gist)
    (path,) = objects(url)
    folder = path.rpartition("/")[0]
    for name in ("notes.txt", "..safetensors", f"{'z' * 64}.safetensors"):
        overwrite(url, f"{folder}/{name}", b"not a gist")
    assert [entry.id for entry in one.entries()] == [key.id]
    assert one.verify() == {"checked": 1, "damaged": []}
    one.gc()
    assert len(objects(url)) == 4


def test_expired_gists_are_collected(at: Open, url: str, pair: Make) -> None:
    import time

    key, gist = pair()
    one = at("one")
    one.put(key, gist, ttl=1e-3)
    time.sleep(2e-3)
    assert at("other").get(key) is None
    assert one.gc()["expired"] >= 1
    assert objects(url) == []


@pytest.fixture
def unreachable(point_s3_at: Callable[[str], None]) -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    point_s3_at(f"http://127.0.0.1:{port}")
    return "s3://bucket/gists"


def test_a_place_that_is_down_stops_reading_and_writing_in_one_line(
    unreachable: str, tmp_path: Path, pair: Make
) -> None:
    key, gist = pair()
    store = GistStore(unreachable, cache_dir=tmp_path / "cache")
    assert store.get(key) is None
    assert store.stats()["remote_errors"] == 1
    with pytest.raises(SaveError, match="cannot be written: s3://bucket/gists") as caught:
        store.put(key, gist)
    assert "\n" not in str(caught.value)
    assert store.get(key) is None, "what was not acknowledged is not half there"
    with pytest.raises(GistFileError, match="cannot be read"):
        store.entries()


def test_no_bucket_is_made_by_itself(
    s3: str, point_s3_at: Callable[[str], None], tmp_path: Path, pair: Make
) -> None:
    point_s3_at(s3)
    store = GistStore(f"s3://nobodys-{uuid4().hex}/gists", cache_dir=tmp_path / "cache")
    with pytest.raises(SaveError, match="cannot be written"):
        store.put(*pair())
    with pytest.raises(SaveError, match="cannot be written"):
        store.put(*pair(), pinned=True)


def test_kinds_of_places_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no place for a store"):
        GistStore("carrier-pigeon://loft", cache_dir=tmp_path)
    with pytest.raises(MissingExtraError, match="gs:// needs"):
        GistStore("gs://bucket/gists", cache_dir=tmp_path)
