"""What whoever runs the server sees: health, metrics, logs, the OpenAPI document."""

import asyncio
import json
import logging
import socket
import warnings
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gistkit.serving import server as server_module
from gistkit.serving.middleware import MAX_REQUESTS
from gistkit.serving.observability import JsonLines, log_loop_error, start_logging
from gistkit.serving.settings import Settings
from tests.serving.fake_engine import FakeEngine
from tests.serving.http_running import Running, running, spoken, wait_for

SECRET = "the password is abracadabra"
BODY = {
    "model": "tiny",
    "messages": [
        {"role": "system", "content": f"Be brief, {SECRET}."},
        {"role": "user", "content": f"say {SECRET}"},
    ],
}


def metrics(server: Running) -> dict[tuple[str, ...], float]:
    response = server.http().get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def told(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The request lines."""
    return [
        record.__dict__["facts"] for record in spoken(caplog) if record.getMessage() == "request"
    ]


def test_alive_and_ready(server: Running) -> None:
    assert server.http().get("/health/live").json() == {"status": "live"}
    assert server.http().get("/health/ready").json() == {"status": "ready"}
    server.engine.healthy = False
    assert server.http().get("/health/live").status_code == 200
    response = server.http().get("/health/ready")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert response.json()["error"]["message"].startswith("the engine has stopped")


def test_models(server: Running) -> None:
    (model,) = server.client().models.list().data
    assert (model.id, model.owned_by) == ("tiny", "gistkit")
    assert (model.gist_tokens, model.max_length) == ([1, 2, 4], 512)
    assert server.client().models.retrieve("tiny").id == "tiny"


def test_what_is_counted(server: Running) -> None:
    http = server.http()
    for _ in range(2):
        http.post("/v1/chat/completions", json=BODY)
    http.post("/v1/chat/completions", json={**BODY, "gist": "off", "stream": True})
    http.get("/v1/gists/" + "0" * 64)
    http.get("/nothing/here")
    wait_for(lambda: ("gistkit_requests_total", "other", "404") in metrics(server))
    found = metrics(server)
    assert found["gistkit_requests_total", "/v1/chat/completions", "200"] == 3
    assert found["gistkit_requests_total", "/v1/gists/{id}", "404"] == 1
    assert found["gistkit_requests_total", "other", "404"] == 1
    assert found["gistkit_request_seconds_count", "/v1/chat/completions"] == 3
    assert found["gistkit_time_to_first_token_seconds_count",] == 3
    assert found["gistkit_gists_total", "used"] == 2 and found["gistkit_gists_total", "off"] == 1
    assert found["gistkit_tokens_total", "cached"] == 2
    assert found["gistkit_tokens_total", "replaced"] == 2 * (
        len(BODY["messages"][0]["content"]) + 15
    )
    assert found["gistkit_tokens_total", "completion"] == 6 + 6 + 12
    assert found["gistkit_engine", "kv_limit"] == 1000
    assert found["gistkit_store", "compressed"] == 1


def test_one_line_for_each_request_and_no_prompts_in_it(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "gistkit")
    http = server.http()
    http.post("/v1/chat/completions", json=BODY, headers={"X-Request-Id": "mine-1"})
    http.post("/v1/chat/completions", json={**BODY, "stream": True})
    http.post("/v1/gists", json={"instruction": SECRET})
    http.get(f"/v1/gists?limit=1&x={SECRET}")
    http.post("/v1/chat/completions", json={**BODY, "surprise": SECRET})
    http.post("/v1/completions", json={"model": "tiny", "prompt": f"CRASH {SECRET}"})
    wait_for(lambda: len(told(caplog)) == 6)  # a line is written after its answer
    first, *others = told(caplog)
    assert first["id"] == "mine-1"
    assert (first["method"], first["route"]) == ("POST", "/v1/chat/completions")
    assert (first["status"], first["gist"], first["client"]) == (200, "used", "127.0.0.1")
    assert first["cached_tokens"] == 1 and first["completion_tokens"] == 6
    assert 0 < first["first_token"] <= first["seconds"] < 30
    assert [one["status"] for one in others] == [200, 201, 200, 400, 500]
    formatter = JsonLines()
    lines = [formatter.format(record) for record in spoken(caplog)]
    assert "abracadabra" not in "".join(lines)
    crash = json.loads(next(line for line in lines if "a request failed" in line))
    assert (crash["error"], crash["level"], crash["id"]) == (
        "RuntimeError",
        "error",
        others[-1]["id"],
    )
    assert any("fake_engine.py" in place for place in crash["where"])


def test_prompts_are_logged_where_that_was_asked_for(
    fake: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gistkit")
    with running(fake, settings=Settings(log_prompts=True)) as server:
        server.http().post("/v1/chat/completions", json=BODY)
    (line,) = told(caplog)  # the server has ended
    assert line["prompt"] == {
        "instruction": BODY["messages"][0]["content"],
        "inputs": [[("user", BODY["messages"][1]["content"])]],
    }


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "é", '{"a":1}'])
def test_an_id_that_is_not_sane_is_replaced(server: Running, given: str) -> None:
    response = server.http().get("/health/live", headers={"X-Request-Id": given.encode()})
    id = response.headers["x-request-id"]
    assert id != given and len(id) == 32


def test_logs_are_json_whoever_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    start_logging(log_prompts=False)
    logging.getLogger("gistkit.serving").info("hello", extra={"facts": {"a": 1}})
    logging.getLogger("somebody.else").warning("careful")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("mind the gap", UserWarning, stacklevel=1)
    loop = asyncio.new_event_loop()
    log_loop_error(loop, {"message": "never retrieved", "exception": ValueError(SECRET)})
    loop.close()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["level"] for line in lines] == ["info", "warning", "warning", "error"]
    assert (lines[0]["event"], lines[0]["a"]) == ("hello", 1)
    assert "mind the gap" in lines[2]["event"]
    assert lines[3]["error"] == "ValueError" and SECRET not in str(lines)


def test_the_document_describes_every_route(server: Running) -> None:
    document = server.http().get("/openapi.json").json()
    assert document["info"]["title"] == "gistkit"
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (method, path)
            assert {"4XX", "5XX"} < operation["responses"].keys() and "422" not in operation
            failure = operation["responses"]["4XX"]["content"]["application/json"]["schema"]
            assert failure == {"$ref": "#/components/schemas/ErrorResponse"}
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert chat["responses"]["200"]["content"].keys() == {"application/json", "text/event-stream"}
    fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"gist", "gist_tokens", "cache_control", "seed", "stop"} < fields.keys()


def test_pages_of_other_sites_get_nothing(server: Running) -> None:
    http = server.http()
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    response = http.options("/v1/chat/completions", headers=asked)
    assert response.status_code == 405
    found = http.get("/v1/models", headers=asked)
    for headers in (response.headers, found.headers):
        assert not [name for name in headers if name.startswith("access-control")]
        assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("127.0.0.1:80", 200),
        ("[::1]:80", 200),
        ("[::1]", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:80", 403),
        ("localhost.evil.example", 403),
        ("192.168.0.1", 403),
    ],
)
def test_without_keys_only_this_machines_names_are_answered(
    server: Running, host: str, status: int
) -> None:
    response = server.http().get("/v1/models", headers={"Host": host})
    assert response.status_code == status
    if status == 403:
        assert response.json()["error"]["code"] == "foreign_host"


def test_too_many_requests_at_once(server: Running) -> None:
    server.service.running = MAX_REQUESTS
    try:
        response = server.http().get("/v1/models")
        assert (response.status_code, response.headers["retry-after"]) == (429, "1")
        assert server.http().get("/health/live").status_code == 200
    finally:
        server.service.running = 0


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET /health/live HTTP/1.1\r\nHost: loc",
        b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea",  # a second one, begun
    ],
)
def test_who_connects_and_says_nothing_is_dropped(
    server: Running, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port), 10) as sent:
        sent.sendall(said)
        while sent.recv(4096):  # the connection ends, sooner than the socket's own limit
            pass


def test_who_speaks_in_time_is_not_dropped(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.3)
    body = {"model": "tiny", "prompt": "SLOW b c d e"}
    http = server.http()
    for _ in range(2):  # a second each, on one connection
        assert http.post("/v1/completions", json=body).json()["choices"][0]["text"]
