"""`/v1/gists`: a gist's whole life over HTTP."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gistkit.gist import Gist
from gistkit.serving import middleware
from gistkit.store import GistStore
from gistkit.testing import tiny_gist_model
from tests.serving.fake_engine import FakeEngine
from tests.serving.http_running import Running, running

BINARY = {"Content-Type": "application/octet-stream"}


def create(server: Running, instruction: str = "Be brief.", **more: Any) -> dict[str, Any]:
    response = server.http().post("/v1/gists", json={"instruction": instruction, **more})
    assert response.status_code == 201, response.text
    found: dict[str, Any] = response.json()
    return found


def upload(server: Running, data: bytes, **query: Any) -> Any:
    return server.http().post("/v1/gists/file", content=data, headers=BINARY, params=query)


def test_what_is_not_there_and_what_cannot_be_seen(server: Running) -> None:
    """A store that is gone is no gist that is gone; and nobody is told where either was."""
    id, place = create(server)["id"], Path(server.engine.store.place)
    ask = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "gist": id}

    def told() -> list[tuple[int, str, str]]:
        http = server.http()
        found = [
            http.get(f"/v1/gists/{id}"),
            http.get(f"/v1/gists/{id}/file"),
            http.patch(f"/v1/gists/{id}", json={"pinned": True}),
            http.post("/v1/chat/completions", json=ask),
        ]
        errors = [one.json()["error"] for one in found]
        return [
            (r.status_code, e["code"], e["message"]) for r, e in zip(found, errors, strict=True)
        ]

    place.rename(place.with_name("gone"))
    assert {one[:2] for one in told()} == {(503, "unavailable")}
    place.with_name("gone").rename(place)
    file = place / "gists" / f"{id}.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    for status, code, message in told():
        assert (status, code, message) == (404, "gist_not_found", f"this server has no gist {id}")


def test_a_whole_life(server: Running) -> None:
    http = server.http()
    made = create(server, k=2, pinned=True, ttl=1000)
    assert (made["object"], made["k"], made["pinned"]) == ("gist", 2, True)
    assert made["expires"] == pytest.approx(made["created"] + 1000, abs=5)
    assert made["instruction_tokens"] == 24 and not made["uploaded"]
    id = made["id"]
    assert http.get("/v1/gists").json() == {
        "object": "list",
        "data": [{**made, "last_used": http.get(f"/v1/gists/{id}").json()["last_used"]}],
        "has_more": False,
    }
    unpinned = http.patch(f"/v1/gists/{id}", json={"pinned": False}).json()
    assert unpinned["pinned"] is False and unpinned["expires"] == made["expires"]
    assert http.delete(f"/v1/gists/{id}").json() == {"id": id, "object": "gist", "deleted": True}
    for response in (
        http.get(f"/v1/gists/{id}"),
        http.delete(f"/v1/gists/{id}"),
        http.get(f"/v1/gists/{id}/file"),
        http.patch(f"/v1/gists/{id}", json={"pinned": True}),
        http.post(f"/v1/gists/{id}/check", json={"instruction": "Be brief."}),
    ):
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "gist_not_found"
    assert http.get("/v1/gists").json()["data"] == []


def test_what_is_there_is_not_made_again(server: Running) -> None:
    assert create(server)["id"] == create(server)["id"] != create(server, k=2)["id"]
    assert server.service.store.stats()["compressed"] == 2


def test_looking_at_gists_makes_none(server: Running) -> None:
    id = create(server)["id"]
    server.http().post(f"/v1/gists/{id}/check", json={"instruction": "Be brief."})
    assert [one["id"] for one in server.http().get("/v1/gists").json()["data"]] == [id]


def test_a_store_that_went_away_and_came_back(server: Running, fake: FakeEngine) -> None:
    http, root = server.http(), Path(fake.store.place)
    made = create(server)
    away = root.rename(root.with_name("away"))
    asked = {
        "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "a"}]
    }
    answer = http.post("/v1/chat/completions", json={"model": "tiny", **asked})
    assert answer.json()["gist"]["status"] == "used"  # in memory alone
    assert http.post("/v1/gists", json={"instruction": "Be short."}).status_code == 507
    response = http.get("/v1/gists")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
    assert "gistkit_engine{" in (numbers := http.get("/metrics").text)
    assert "gistkit_store{" not in numbers
    away.rename(root)
    kept = create(server, "Be short.")
    assert {one["id"] for one in http.get("/v1/gists").json()["data"]} == {made["id"], kept["id"]}
    assert "gistkit_store{" in http.get("/metrics").text


def test_the_last_used_first_and_no_more_than_asked(server: Running) -> None:
    ids = [create(server, f"Be brief {n}.")["id"] for n in range(3)]
    listed = server.http().get("/v1/gists", params={"limit": 2}).json()
    assert listed["has_more"] and [one["id"] for one in listed["data"]] == [ids[2], ids[1]]
    assert server.http().get("/v1/gists", params={"limit": 3}).json()["has_more"] is False


def test_its_fidelity_is_kept_and_shown(server: Running) -> None:
    id = create(server)["id"]
    body = {"instruction": "Be brief.", "probes": ["a", "b"]}
    found = server.http().post(f"/v1/gists/{id}/check", json=body).json()
    assert found["score"] == 0.99 and found["probes"] == 2 and found["parts"].keys() > {"numbers"}
    assert server.http().get(f"/v1/gists/{id}").json()["fidelity"] == found
    (listed,) = server.http().get("/v1/gists").json()["data"]
    assert listed["fidelity"] == {"score": 0.99}


def test_a_gist_moves_to_another_server(server: Running, tmp_path: Path) -> None:
    id = create(server, k=2)["id"]
    response = server.http().get(f"/v1/gists/{id}/file")
    assert response.headers["content-type"] == BINARY["Content-Type"]
    assert response.headers["content-disposition"].endswith(f'"{id[:12]}.safetensors"')
    path = tmp_path / "gist.safetensors"
    path.write_bytes(response.content)
    gist = Gist.load(path)  # as `gistkit compress --gist` does
    with (
        GistStore(tmp_path / "other") as store,
        running(FakeEngine(tiny_gist_model(), store)) as other,
    ):
        response = upload(other, path.read_bytes(), pinned=True, ttl=1000)
        assert response.status_code == 201
        brought = response.json()
        assert brought["uploaded"] and brought["pinned"] and brought["expires"]
        assert brought["id"] != id and brought["k"] == 2  # found by what it holds
        assert upload(other, path.read_bytes()).json()["id"] == brought["id"]
        assert [one["id"] for one in other.http().get("/v1/gists").json()["data"]] == [
            brought["id"]
        ]
        answer = other.client().chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "one"}],
            extra_body={"gist": brought["id"]},
        )
        assert answer.choices[0].message.content == "gist: one"
        assert answer.gist["k"] == 2
        kept = store.load(brought["id"])
        assert all(torch.equal(kept.tensors[name], t) for name, t in gist.tensors.items())
        # a file proves nothing of an instruction: it is compressed anew
        answer = other.client().chat.completions.create(
            model="tiny",
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "one"},
            ],
            extra_body={"gist_tokens": 2},
        )
        assert answer.gist["id"] == id


def test_a_file_is_verified(server: Running) -> None:
    model = server.engine.model
    gist = model.compress("Be brief.")
    data = gist.to_bytes()
    changed = {name: t.clone() for name, t in gist.tensors.items()}
    next(iter(changed.values()))[0, 0, 0, 0] = float("nan")
    odd = Gist(changed, gist.lengths, gist.provenance, gist.model, gist.template)
    wide = {name: torch.cat([t, t], -1) for name, t in gist.tensors.items()}
    large = Gist(wide, gist.lengths, gist.provenance, gist.model, gist.template)
    half = {name: t.half() for name, t in gist.tensors.items()}
    other = tiny_gist_model(seed=1).compress("Be brief.")
    for bad, code, message in (
        (b"", "gist_damaged", "this file is damaged"),
        (b"hello", "gist_damaged", "this file is damaged"),
        (data[:-1], "gist_damaged", "this file is damaged"),
        (data[:-1] + bytes([data[-1] ^ 1]), "gist_damaged", "its digest does not match"),
        (odd.to_bytes(), "gist_mismatch", "not finite numbers"),
        (large.to_bytes(), "gist_mismatch", "do not have this model's shapes"),
        (
            Gist(half, gist.lengths, gist.provenance, gist.model, gist.template).to_bytes(),
            "gist_mismatch",
            "do not have this model's shapes",
        ),
        (other.to_bytes(), "gist_mismatch", "another model"),
        (model.compress(["a", "b"]).to_bytes(), "gist_mismatch", "2 gists for 1 inputs"),
    ):
        response = upload(server, bad)
        assert response.status_code == 400, (message, response.text)
        error = response.json()["error"]
        assert error["code"] == code and message in error["message"]
    assert server.service.store.entries() == []


@pytest.mark.parametrize("kind", ["application/json", "text/plain", ""])
def test_a_file_comes_as_bytes_only(server: Running, kind: str) -> None:
    response = server.http().post("/v1/gists/file", content=b"x", headers={"Content-Type": kind})
    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_media_type"


def test_a_file_that_is_too_large(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "MAX_FILE", 1000)
    assert upload(server, b"x" * 1001).status_code == 413
    assert upload(server, b"x" * 1000).status_code == 400


def test_a_file_may_be_larger_than_other_bodies(server: Running) -> None:
    assert upload(server, b"x" * 2 * 2**20).status_code == 400


def test_few_files_at_once(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "MAX_UPLOADS", 0)
    response = upload(server, b"x")
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../../etc/passwd",
        "%2e%2e%2fx",
        "0" * 63,
        "0" * 65,
        "F" * 64,
        "0" * 64 + "%0a",
        "~",
        "%00",
    ],
)
@pytest.mark.parametrize("end", ["", "/file"])
def test_an_id_is_64_digits_and_no_path(server: Running, path: str, end: str) -> None:
    http = server.http()
    for method in ("GET", "DELETE"):
        response = http.request(method, f"{server.url}/v1/gists/{path}{end}")
        assert response.status_code in (400, 404, 405)
        assert response.json()["error"]["type"] in ("invalid_request_error", "not_found_error")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"instruction": 1},
        {"instruction": " "},
        {"instruction": "a<GIST>b"},
        {"instruction": "x", "k": 3},
        {"instruction": "x", "k": 0},
        {"instruction": "x" * 600},
        {"instruction": "x", "ttl": 0},
        {"instruction": "x", "ttl": 1e300},
        {"instruction": "x", "pinned": "yes"},
        {"instruction": "x", "more": 1},
    ],
    ids=str,
)
def test_what_cannot_be_made_a_gist(server: Running, body: dict[str, Any]) -> None:
    response = server.http().post("/v1/gists", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_value"
    assert server.service.store.entries() == []
