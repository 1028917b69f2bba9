"""The server in front of vLLM servers, as the openai client and the command line see it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from gistkit.model import GistModel
from gistkit.store import GistStore
from tests.serving.fake_vllm import FakeVllm
from tests.serving.http_running import Running, running
from tests.serving.vllm_running import engine_on, saved, servers

INSTRUCTION = "Everything costs nine coins. You are Nora."
SYSTEM = {"role": "system", "content": INSTRUCTION}
USER = {"role": "user", "content": "abc"}
ASK = {"model": "tiny", "messages": [SYSTEM, USER], "max_tokens": 40}


@pytest.fixture
def model(tmp_path: Path) -> GistModel:
    return saved(tmp_path)


@pytest.fixture
def fakes(tmp_path: Path, model: GistModel) -> Iterator[list[FakeVllm]]:
    with servers(tmp_path, model, 2) as found:
        yield found


@pytest.fixture
def server(tmp_path: Path, model: GistModel, fakes: list[FakeVllm]) -> Iterator[Running]:
    with GistStore(tmp_path / "store") as store:
        engine = engine_on(tmp_path, model, store, fakes)
        with running(engine) as found:
            yield found


def test_chat_and_completions(server: Running, model: GistModel) -> None:
    gist = model.compress(INSTRUCTION)
    (wanted,) = model.generate("abc", gist, max_new_tokens=40)
    client = server.client()
    found = client.chat.completions.create(**ASK)
    assert found.choices[0].message.content == wanted
    assert found.gist["status"] == "used"
    assert found.usage.prompt_tokens_details.cached_tokens == 1
    assert found.usage.replaced_tokens == gist.provenance[0].instruction_tokens
    chunks = list(client.chat.completions.create(**ASK, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == wanted
    both = client.completions.create(
        model="tiny", prompt=["abc", "abc"], max_tokens=40, extra_body={"instruction": INSTRUCTION}
    )
    assert [choice.text for choice in both.choices] == [wanted] * 2
    models = server.http().get("/v1/models").json()
    assert models["data"][0]["max_length"] == 400


@pytest.mark.parametrize("extra", [{"gist": "off"}, {"gist_tokens": 3}, {"gist": "0" * 64}])
def test_a_gist_that_is_not_used_means_the_full_prompt(
    extra: dict[str, Any], server: Running, model: GistModel
) -> None:
    found = server.client().chat.completions.create(**ASK, extra_body=extra)
    (wanted,) = model.generate("abc", instructions=INSTRUCTION, max_new_tokens=40)
    assert found.choices[0].message.content == wanted
    assert found.gist["status"] == ("off" if "off" in extra.values() else "refused")


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"extra_body": {"prompt_logprobs": 1}}, 400),
        ({"extra_body": {"kv_transfer_params": {"gist": "0" * 64}}}, 400),
        ({"messages": [USER], "extra_body": {"gist": "0" * 64}}, 404),
        ({"max_tokens": 500}, 400),
    ],
)
def test_mistakes_of_clients_do_not_reach_vllm(
    more: dict[str, Any], status: int, server: Running, fakes: list[FakeVllm]
) -> None:
    server.client().chat.completions.create(**ASK)  # the gist is there
    before = [len(fake.asked) for fake in fakes]
    with pytest.raises(openai.APIStatusError) as error:
        server.client().chat.completions.create(**(ASK | more))
    assert error.value.status_code == status
    assert [len(fake.asked) for fake in fakes] == before


def test_measuring_needs_the_weights(server: Running) -> None:
    http = server.http()
    made = http.post("/v1/gists", json={"instruction": INSTRUCTION}).json()
    found = http.post(f"/v1/gists/{made['id']}/check", json={"instruction": INSTRUCTION})
    assert found.status_code == 400
    assert "--compressor transformers" in found.json()["error"]["message"]
    three = http.post("/v1/gists", json={"instruction": INSTRUCTION, "k": 3})
    assert three.status_code == 400


def test_a_stream_that_breaks_ends_with_an_error(server: Running, fakes: list[FakeVllm]) -> None:
    server.client().chat.completions.create(**ASK)
    for fake in fakes:
        fake.fault = "halfway"
    with pytest.raises(openai.APIError, match="in the middle of this answer; try again"):
        list(server.client().chat.completions.create(**ASK, stream=True))


def test_without_servers_it_says_so(server: Running, fakes: list[FakeVllm]) -> None:
    http = server.http()
    assert http.get("/health/ready").status_code == 200
    for fake in fakes:
        fake.kill()
    limit = time.monotonic() + 20
    while http.get("/health/ready").status_code == 200:
        assert time.monotonic() < limit
        time.sleep(0.05)
    with pytest.raises(openai.APIStatusError) as error:
        server.client().chat.completions.create(**ASK)
    assert error.value.status_code == 503
    assert error.value.response.headers["retry-after"] == "1"


def test_a_client_that_leaves_is_told_to_vllm(server: Running, fakes: list[FakeVllm]) -> None:
    server.client().chat.completions.create(**ASK)
    for fake in fakes:
        fake.pause = 0.2
    ask = ASK | {"max_tokens": 200}
    stream = server.client().chat.completions.create(**ask, stream=True)
    next(iter(stream))
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        server.client().with_options(timeout=1).chat.completions.create(**ask)
    limit = time.monotonic() + 20
    while sum(fake.cancelled for fake in fakes) < 2:
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_the_command_serves_without_vllm_and_without_weights(
    tmp_path: Path, model: GistModel, fakes: list[FakeVllm]
) -> None:
    """As a process: started, asked, ended by SIGTERM. This environment has no vLLM."""
    for fake in fakes:
        fake.key = "open-sesame"
    (tmp_path / "model" / "model.safetensors").unlink()
    place = [str(tmp_path / "model"), "--store", str(tmp_path / "store"), "--port", "0"]
    ends = [word for fake in fakes for word in ("--endpoint", fake.url)]
    process = subprocess.Popen(
        [sys.executable, "-m", "gistkit", "serve", *place, *ends],
        stderr=subprocess.PIPE,
        env=os.environ | {"GISTKIT_ENDPOINT_KEY": "open-sesame"},
        text=True,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            event = json.loads(line)
            if event["event"] == "listening":
                break
        answer = httpx2.post(
            f"{event['url']}/v1/chat/completions", json=ASK | {"model": "model"}, timeout=30
        ).json()
        (wanted,) = model.generate("abc", model.compress(INSTRUCTION), max_new_tokens=40)
        assert answer["choices"][0]["message"]["content"] == wanted
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(30) == 0
        assert '"ended"' in rest and "Traceback" not in rest
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
