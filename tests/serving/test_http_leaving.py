"""Clients that go away, and a server that does."""

import asyncio
import signal
import threading
from typing import Any

import httpx
import openai
import pytest

from gistkit.serving import responses
from gistkit.serving.settings import Settings
from tests.serving.fake_engine import FakeEngine
from tests.serving.http_running import Running, running, wait_for

SLOW = {"model": "tiny", "prompt": "SLOW " * 100, "max_tokens": 100}  # 20 seconds


def test_who_waits_no_longer_is_not_computed_for(server: Running) -> None:
    http = server.http()
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/completions", json=SLOW, timeout=0.5)
    wait_for(lambda: server.engine.closed == 1)
    assert server.engine.running == 0


def test_closing_a_stream_cancels_it(server: Running) -> None:
    stream = server.client().completions.create(**SLOW, stream=True)
    assert next(iter(stream)).choices[0].text == "full:"
    assert server.engine.running == 1
    stream.close()
    wait_for(lambda: server.engine.closed == 1)
    metrics = server.http().get("/metrics").text
    assert 'gistkit_tokens_total{kind="completion"}' in metrics  # what there was is counted


def test_a_client_cancelled_half_way(server: Running) -> None:
    async def work() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0
        ) as client:
            asking = asyncio.create_task(client.completions.create(**SLOW))
            while not server.engine.running:
                await asyncio.sleep(0.01)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    asyncio.run(work())
    wait_for(lambda: server.engine.closed == 1)


def test_who_goes_while_an_instruction_is_compressed(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[str] = []

    async def compress(*_: object) -> None:
        try:
            await asyncio.sleep(20)
        finally:
            ended.append("compress")

    monkeypatch.setattr(server.engine, "compress", compress)
    for path, body in (
        ("/v1/gists", {"instruction": "a"}),
        ("/v1/completions", {"model": "tiny", "prompt": "a", "instruction": "b"}),
    ):
        with pytest.raises(httpx.ReadTimeout):
            server.http().post(path, json=body, timeout=0.3)
    wait_for(lambda: len(ended) == 2)


def test_who_does_not_read_is_not_waited_for_forever(
    fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "GRACE", 0.2)
    words = " ".join(["x" * 2000] * 480)
    body = {"model": "tiny", "prompt": words, "max_tokens": 30, "stream": True, "n": 8}
    with running(fake, settings=Settings(timeout=1.0)) as server:
        fake.max_length = 10**6
        body["max_tokens"] = 481
        with server.http().stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200
            wait_for(lambda: fake.closed == 1)  # nobody has read more than the first pieces


def ask_slowly(server: Running, words: int, found: list[Any]) -> threading.Thread:
    """Ask in a thread, and wait until it is being answered."""
    prompt = " ".join(["SLOW", *["word"] * words])

    def ask() -> None:
        try:
            client = server.client()
            found.append(client.completions.create(model="tiny", prompt=prompt, max_tokens=99))
        except Exception as error:
            found.append(error)

    before = server.engine.running
    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: server.engine.running > before)
    return thread


def test_draining_lets_answers_end_and_nothing_begin(fake: FakeEngine) -> None:
    with running(fake, settings=Settings(drain_seconds=20)) as server:
        found: list[Any] = []
        thread = ask_slowly(server, 8, found)
        server.server.handle_exit(signal.SIGTERM, None)
        http = server.http()
        response = http.post("/v1/completions", json={"model": "tiny", "prompt": "a"})
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert "stopping" in response.json()["error"]["message"]
        assert http.get("/health/ready").status_code == 503
        assert http.get("/health/live").status_code == 200
        assert http.get("/metrics").status_code == 200
        thread.join(20)
        assert found[0].choices[0].text == "full: SLOW" + " word" * 8
        wait_for(lambda: server.server.should_exit)


def test_draining_ends_at_its_time(fake: FakeEngine) -> None:
    with running(fake, settings=Settings(drain_seconds=0.3)) as server:
        found: list[Any] = []
        thread = ask_slowly(server, 90, found)
        server.server.handle_exit(signal.SIGTERM, None)
        thread.join(10)
        assert isinstance(found[0], openai.APIError)
    assert fake.running == 0 and fake.closed == 1


def test_a_second_signal_does_not_wait(fake: FakeEngine) -> None:
    with running(fake, settings=Settings(drain_seconds=60)) as server:
        found: list[Any] = []
        thread = ask_slowly(server, 90, found)
        server.server.handle_exit(signal.SIGTERM, None)
        assert not server.server.should_exit
        server.server.handle_exit(signal.SIGTERM, None)
        thread.join(10)
        assert isinstance(found[0], openai.APIError)
    assert fake.running == 0
