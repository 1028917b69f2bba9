"""Errors as OpenAI's client raises them: the status, and a body with message, type, param, code."""

import socket
from typing import Any

import httpx
import openai
import pytest

from gistkit.errors import SaveError
from gistkit.serving import middleware
from gistkit.serving.settings import Settings
from tests.serving.fake_engine import FakeEngine
from tests.serving.http_running import Running, running

USER = {"role": "user", "content": "one two three"}


def chat(server: Running, content: str = "one", **options: Any) -> Any:
    message = {"role": "user", "content": content}
    return server.client().chat.completions.create(
        **{"model": "tiny", "messages": [message], **options}
    )


def told(response: httpx.Response | Any) -> dict[str, Any]:
    """The error of a response, which has OpenAI's shape and an id."""
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"] and "\n" not in body["error"]["message"]
    assert response.headers["x-request-id"]
    found: dict[str, Any] = body["error"]
    return found


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "'developer'"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "string"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0.type",
            "'text'",
        ),
        (
            {
                "messages": [
                    {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]},
                    USER,
                ]
            },
            "messages.0.tool_calls",
            "at most 0",
        ),
        ({"messages": [USER, {"role": "system", "content": "x"}]}, "messages", "must come first"),
        ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "messages", "the user's"),
        ({"messages": [{"role": "user", "content": "a<GIST>b"}]}, None, "<GIST>"),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, None, "too many"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 10**6}, "max_tokens", "less than or equal to 16384"),
        ({"max_tokens": 600}, None, "too many"),
        ({"n": 0}, "n", "greater"),
        ({"n": 9}, None, "too many at once"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"stop": [""]}, "stop.0", "at least 1 character"),
        ({"stop": list("abcde")}, "stop", "at most 4"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "less than or equal to 20"),
        ({"tools": [{"type": "function"}]}, "tools", "at most 0"),
        ({"response_format": {"type": "json_object"}}, "response_format.type", "'text'"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "less than or equal to 0"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "at most 0"),
        ({"extra_body": {"top_k": 5}}, "top_k", "unknown or unsupported field 'top_k'"),
        ({"extra_body": {"gist": "yes"}}, "gist", "pattern"),
        ({"extra_headers": {"X-Gist": "yes"}}, "x-gist", "pattern"),
        ({"extra_body": {"gist_tokens": 0}}, "gist_tokens", "greater"),
    ],
    ids=str,
)
def test_400_names_the_field(
    server: Running, options: dict[str, Any], param: str | None, message: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(server, **options)
    error = told(caught.value.response)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert message in error["message"]


def test_400_for_an_id_without_text_of_a_gist_that_is_not_there(server: Running) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        chat(server, extra_body={"gist": "0" * 64})
    assert told(caught.value.response)["code"] == "gist_not_found"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "seed": 1e400}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "top_p": NaN}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"\\ud800": 1, "model": "tiny", "messages": [{"role": "user", "content": "x"}]}',
    ],
    ids=lambda body: repr(body[:40]),
)
def test_400_for_a_body_that_is_no_request(server: Running, body: bytes) -> None:
    kind = {"Content-Type": "application/json"}
    response = server.http().post("/v1/chat/completions", content=body, headers=kind)
    assert response.status_code == 400
    assert told(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_400_for_what_a_form_of_another_site_could_send(server: Running, kind: str) -> None:
    body = b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}]}'
    response = server.http().post(
        "/v1/chat/completions", content=body, headers={"Content-Type": kind}
    )
    assert response.status_code == 400
    assert "as application/json" in told(response)["message"]


def test_404_for_another_model_and_another_route(server: Running) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        chat(server, model="gpt-4o")
    error = told(caught.value.response)
    assert (error["type"], error["code"]) == ("not_found_error", "model_not_found")
    assert error["message"] == "no model 'gpt-4o' here; there is 'tiny'"
    with pytest.raises(openai.NotFoundError):
        server.client().models.retrieve("gpt-4o")
    with pytest.raises(openai.NotFoundError) as caught:
        server.client().embeddings.create(model="tiny", input="x")
    assert told(caught.value.response)["message"] == "no such route: POST /v1/embeddings"


def test_405_says_which_methods_there_are(server: Running) -> None:
    response = server.http().get("/v1/chat/completions")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    told(response)


def test_408_for_a_body_that_does_not_come(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.2)
    with socket.create_connection(server.url.removeprefix("http://").split(":"), 30) as sent:
        sent.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
        )
        answer = b"".join(iter(lambda: sent.recv(4096), b""))  # and the connection ends
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"type":"invalid_request_error"' in answer


@pytest.mark.parametrize("megabytes", [2, 20])
def test_413_for_a_body_that_is_too_large(server: Running, megabytes: int) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        chat(server, "x" * megabytes * 2**20)
    assert caught.value.status_code == 413
    error = told(caught.value.response)
    assert (error["code"], error["message"]) == (
        "body_too_large",
        "the body has more than 1048576 bytes",
    )


def test_413_for_a_body_that_does_not_say_how_long_it_is(fake: FakeEngine) -> None:
    with running(fake, settings=Settings(max_body=1000)) as server:
        pieces = (b"x" * 400 for _ in range(10**6))  # it need not be sent to the end
        response = server.http().post("/v1/chat/completions", content=pieces)
        assert response.status_code == 413


def test_429_says_when_to_come_back(server: Running) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        chat(server, "BUSY")
    assert told(caught.value.response)["type"] == "rate_limit_error"
    assert caught.value.response.headers["retry-after"] == "2"  # the fake says 1.5
    system = {"role": "system", "content": "BUSY"}
    with pytest.raises(openai.RateLimitError) as caught:
        chat(server, messages=[system, USER])
    assert caught.value.response.headers["retry-after"] == "4"


def test_500_does_not_say_what_the_prompt_was(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        chat(server, "CRASH the password is 1234")
    error = told(caught.value.response)
    assert error["message"] == "the server failed at this request; see its log"
    assert chat(server).choices[0].message.content == "full: one"  # it goes on


def test_503_when_the_engine_is_gone(server: Running) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        chat(server, "GONE")
    assert caught.value.status_code == 503
    assert told(caught.value.response)["code"] == "unavailable"
    assert caught.value.response.headers["retry-after"] == "1"


def test_504_when_it_takes_too_long(fake: FakeEngine) -> None:
    with running(fake, settings=Settings(timeout=0.5)) as server:
        with pytest.raises(openai.InternalServerError) as caught:
            chat(server, "SLOW " * 20)
        assert caught.value.status_code == 504
        assert told(caught.value.response)["code"] == "timeout"
        assert (fake.running, fake.closed) == (0, 1)
        with pytest.raises(openai.APIError, match="longer than the server allows"):
            list(chat(server, "SLOW " * 20, stream=True))  # after some pieces
        assert (fake.running, fake.closed) == (0, 2)


def test_507_when_the_store_is_full(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SaveError("the quota is full of pins")

    monkeypatch.setattr(server.service.store, "pin", full)
    response = server.http().post("/v1/gists", json={"instruction": "Be brief.", "pinned": True})
    assert response.status_code == 507
    assert told(response)["code"] == "store_full"


@pytest.mark.parametrize("path", ["chat", "completions"])
def test_a_stream_that_fails_half_way_says_so(server: Running, path: str) -> None:
    pieces = []
    with pytest.raises(openai.APIError, match="stopped in the middle"):
        client = server.client()
        if path == "chat":
            for chunk in chat(server, "one BREAK three", stream=True):
                pieces.append(chunk.choices[0].delta.content or "")
        else:
            for text in client.completions.create(
                model="tiny", prompt="one BREAK three", stream=True
            ):
                pieces.append(text.choices[0].text)
    assert "".join(pieces) == "full: one"


def test_a_stream_that_fails_at_once_has_a_status(server: Running) -> None:
    with pytest.raises(openai.RateLimitError):
        chat(server, "BUSY", stream=True)


def test_one_of_many_prompts_that_fails_fails_the_request(server: Running) -> None:
    with pytest.raises(openai.InternalServerError):
        server.client().completions.create(model="tiny", prompt=["a", "GONE", "SLOW b"])
    assert server.engine.running == 0  # the others were given up
