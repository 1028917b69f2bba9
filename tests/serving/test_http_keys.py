"""API keys: nobody gets in without one, and with one only where its scopes say so."""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from gistkit.errors import DataError, OptionError
from gistkit.serving.keys import SCOPES, Keys, new_key, scope_of
from tests.serving.fake_engine import FakeEngine
from tests.serving.http_running import Running, running, spoken, wait_for

OPEN = {"/health/live", "/health/ready"}
BODIES = {
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "a"}]},
    "/v1/completions": {"model": "tiny", "prompt": "a"},
    "/v1/gists": {"instruction": "Be brief."},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def tokens(file: Path) -> dict[str, str]:
    """A key for each scope, and one for all."""
    found = {scope: new_key(file, scope.replace(":", "-"), [scope]) for scope in SCOPES}
    return {**found, "all": new_key(file, "all", ())}


@pytest.fixture
def locked(fake: FakeEngine, file: Path, tokens: dict[str, str]) -> Iterator[Running]:
    with running(fake, keys=Keys.read(file)) as found:
        yield found


def routes(server: Running, key: str) -> list[tuple[str, str]]:
    """Every route of the document, the document itself, and what is no route."""
    paths = server.http(key).get("/openapi.json").json()["paths"]
    found = [
        (method.upper(), path.replace("{id}", "0" * 64))
        for path, methods in paths.items()
        for method in methods
    ]
    assert len(found) == 15
    more = [("GET", "/openapi.json"), ("GET", "/docs"), ("POST", "/"), ("OPTIONS", "/v1/models")]
    return [*found, *more, ("GET", "/v1/nothing"), ("HEAD", "/metrics"), ("GET", "//v1/gists")]


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer wrong", "Basic {}", "{}", "Bearer {}x", "Bearer x {}"],
)
def test_every_route_but_health_refuses_without_a_key(
    locked: Running, tokens: dict[str, str], header: str | None
) -> None:
    key = tokens["all"]
    headers = {} if header is None else {"Authorization": header.replace("{}", key)}
    refused = 0
    for method, path in routes(locked, key):
        response = locked.http().request(method, path, headers=headers, json={"more": "x" * 1000})
        if path in OPEN:
            assert response.status_code == 200
        elif (method, path) == ("POST", "/"):
            assert response.status_code == 405  # the page holds no secrets
        else:
            refused += 1
            assert response.status_code == 401, (method, path)
            assert response.headers["www-authenticate"] == "Bearer"
            if method != "HEAD":
                assert response.json()["error"]["code"] == "invalid_api_key"
    assert refused == 19
    assert locked.engine.clients == [] and locked.engine.store.entries() == []


def test_the_openai_client_raises_what_it_should(locked: Running, tokens: dict[str, str]) -> None:
    with pytest.raises(openai.AuthenticationError) as caught:
        locked.client("wrong").models.list()
    assert caught.value.code == "invalid_api_key"
    with pytest.raises(openai.PermissionDeniedError) as denied:
        locked.client(tokens["metrics"]).models.list()
    assert denied.value.code == "missing_scope"
    assert "lacks the scope chat" in denied.value.message
    assert locked.client(tokens["chat"]).models.list().data[0].id == "tiny"


@pytest.mark.parametrize("scope", SCOPES)
def test_a_scope_opens_its_routes_and_no_others(
    locked: Running, tokens: dict[str, str], scope: str
) -> None:
    http = locked.http(tokens[scope])
    for method, path in routes(locked, tokens["all"]):
        needed = scope_of(method, path)
        response = http.request(method, path, json=BODIES.get(path, {}))
        if needed in (None, "", scope):
            assert response.status_code not in (401, 403), (method, path)
        else:
            assert response.status_code == 403, (method, path)


def test_what_each_route_needs() -> None:
    assert scope_of("POST", "/v1/chat/completions") == "chat"
    assert scope_of("GET", "/v1/models") == "chat"
    assert scope_of("GET", "/v1/gists/x/file") == "gists:read"
    assert {scope_of(m, "/v1/gists") for m in ("POST", "DELETE", "PATCH")} == {"gists:write"}
    assert scope_of("GET", "/metrics") == "metrics"
    assert scope_of("GET", "/health/live") is None
    assert scope_of("GET", "/what/ever") == ""  # any key


def test_a_keys_name_is_its_place_in_the_queue(locked: Running, tokens: dict[str, str]) -> None:
    locked.client(tokens["chat"]).completions.create(model="tiny", prompt="a")
    assert locked.engine.clients == ["chat"]


def test_keys_are_in_no_log_and_no_answer(
    locked: Running, tokens: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "gistkit")
    answers = [
        locked.http(key).post("/v1/chat/completions", json=BODIES["/v1/chat/completions"]).text
        for key in (*tokens.values(), "a-wrong-key")
    ]
    wait_for(lambda: len(spoken(caplog)) == 6)
    assert "chat" in {record.__dict__["facts"]["client"] for record in spoken(caplog)}
    said = caplog.text + str([record.__dict__ for record in caplog.records]) + str(answers)
    assert not any(key in said for key in (*tokens.values(), "a-wrong-key"))


def test_the_file_holds_hashes_only(file: Path, tokens: dict[str, str]) -> None:
    text = file.read_text()
    assert not any(token in text for token in tokens.values())
    rows = json.loads(text)
    assert [row["name"] for row in rows] == ["chat", "gists-read", "gists-write", "metrics", "all"]
    assert rows[0] == {
        "name": "chat",
        "sha256": hashlib.sha256(tokens["chat"].encode()).hexdigest(),
        "scopes": ["chat"],
    }
    assert rows[-1]["scopes"] == list(SCOPES)
    assert len(set(tokens.values())) == 5 and all(len(token) > 40 for token in tokens.values())


def test_every_key_is_compared_to_its_end(
    file: Path, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[str, str]] = []
    monkeypatch.setattr(
        "gistkit.serving.keys.hmac.compare_digest",
        lambda a, b: compared.append((a, b)) or a == b,  # type: ignore[func-returns-value]
    )
    keys = Keys.read(file)
    found = keys.find(tokens["chat"])
    assert found is not None and found.name == "chat"  # the first one in the file
    assert keys.find("wrong") is None
    assert len(compared) == 2 * 5


@pytest.mark.parametrize(
    ("name", "scopes", "message"),
    [
        ("chat", [], "already has a key named 'chat'"),
        ("a b", [], "'a b' is not a valid key name"),
        ("", [], "is not a valid key name"),
        ("new", ["chats"], "unknown scope 'chats'; choose from chat, gists:read"),
    ],
)
def test_a_key_that_cannot_be_made(
    file: Path, tokens: dict[str, str], name: str, scopes: list[str], message: str
) -> None:
    before = file.read_bytes()
    with pytest.raises(OptionError, match=message):
        new_key(file, name, scopes)
    assert file.read_bytes() == before


ROW = {"name": "a", "sha256": "0" * 64, "scopes": ["chat"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("\udcff", "is not valid JSON"),
        ("{}", "holds no list of keys"),
        ("[]", "holds no list of keys"),
        ("[1]", "key 1: expected name"),
        (json.dumps([{**ROW, "key": "secret"}]), "key 1: expected name"),
        (json.dumps([ROW, {**ROW, "name": "b", "sha256": "0" * 63}]), "key 2: expected name"),
        (json.dumps([{**ROW, "scopes": []}]), "key 1: a key without scopes"),
        (json.dumps([{**ROW, "scopes": ["all"]}]), "key 1: unknown scope 'all'"),
        (json.dumps([ROW, ROW]), "two keys with the same name"),
    ],
    ids=lambda value: value[:30],
)
def test_a_file_of_keys_that_is_none(file: Path, content: str, message: str) -> None:
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message):
        Keys.read(file)


def test_no_file_of_keys(file: Path) -> None:
    with pytest.raises(DataError, match=r"no key file at .*; create one with `new_key`"):
        Keys.read(file)
