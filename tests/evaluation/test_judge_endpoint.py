"""Asking an endpoint that misbehaves: it gets time, and in the end every pair its verdict."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate

import pytest

from gistkit.errors import JudgeError
from gistkit.evaluation.judge.endpoint import (
    Endpoint,
    EndpointConfig,
    Reply,
    Usage,
    retry_after,
)
from gistkit.evaluation.judge.pairs import Pair, Question
from gistkit.testing.judge import FAULTS, FakeEndpoint

QUESTION = Question(Pair(0, "Instruction: Go.", "longer", "short"), True)
KEY = "sk-secret-of-ours"


def asked(fake: FakeEndpoint, *, times: int = 1, **options: object) -> list[Reply]:
    """The question asked `times`, one after the other, over one connection."""
    settings = {"timeout": 0.5, "backoff": 0.01, **options}
    config = EndpointConfig(model="m", base_url=fake.url, **settings)  # type: ignore[arg-type]

    async def run() -> list[Reply]:
        async with Endpoint(config, key=KEY) as endpoint:
            return [await endpoint.ask(QUESTION) for _ in range(times)]

    return asyncio.run(run())


def script(*faults: str | None) -> Callable[[str, int], str | None]:
    """These faults, and then none."""
    return lambda key, time: faults[time] if time < len(faults) else None


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_outlived(fault: str) -> None:
    with FakeEndpoint(fault=script(fault)) as fake:
        (answer,) = asked(fake)
    assert answer.verdict is not None, answer.error
    assert answer.verdict.of_pair(QUESTION) == "a"
    assert answer.usage.requests == (1 if fault == "chatty" else 2) == sum(fake.requests.values())
    assert sum(fake.judged.values()) == 1


@pytest.mark.parametrize(
    ("fault", "error", "reached"),
    [
        ("error", "status 500 (overloaded)", True),
        ("slow", "no answer within 0.1 s", False),
        ("hang_up", "no connection", False),
        ("no_json", "an answer that is not the API's JSON", True),
        ("truncated", 'no verdict in \'{"reason": "It is longer and\'', True),
        ("invalid", "chose 'C', not A, B or tie", True),
        ("empty", "an empty answer", True),
        ("422", "status 422", True),
    ],
)
def test_what_never_ends_is_a_failure(fault: str, error: str, reached: bool) -> None:
    """Never a tie."""
    with FakeEndpoint(fault=lambda key, time: fault) as fake:
        (answer,) = asked(fake, retries=1, timeout=0.1 if fault == "slow" else 5)
    assert answer.verdict is None
    assert error in answer.error
    assert answer.reached is reached
    assert answer.usage.requests == 2


def test_failed_answers_are_paid_for() -> None:
    with FakeEndpoint(fault=script("invalid", "empty")) as fake:
        (answer,) = asked(fake)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (300, 30)


def test_an_answer_that_is_no_verdict_is_named_when_asked_again() -> None:
    with FakeEndpoint(fault=script("invalid", "invalid")) as fake:
        asked(fake)
    roles = [[part["role"] for part in body["messages"]] for body in fake.bodies]
    again = ["system", "user", "assistant", "user"]
    assert roles == [again[:2], again, again]
    assert "JSON object" in fake.bodies[-1]["messages"][-1]["content"]


def test_retry_after_is_waited_for() -> None:
    with FakeEndpoint(fault=script(*["limit"] * 8)) as fake:
        start = time.monotonic()
        (answer,) = asked(fake, retries=0)  # a rate limit is no retry
        assert time.monotonic() - start >= 8 * 0.05
    assert answer.verdict is not None


def test_retry_after_as_seconds_and_as_a_date() -> None:
    assert retry_after({}) is None
    assert retry_after({"retry-after": "soon"}) is None
    assert retry_after({"retry-after": "-1"}) == 0
    found = retry_after({"retry-after": formatdate(time.time() + 30, usegmt=True)})
    assert found is not None
    assert 25 < found <= 30


def test_a_schema_is_given_up_where_it_is_refused() -> None:
    with FakeEndpoint(structured=False) as fake:
        answers = asked(fake, times=3)
    assert all(answer.verdict is not None for answer in answers)
    assert ["response_format" in body for body in fake.bodies] == [True, False, False, False]
    with FakeEndpoint() as fake:
        asked(fake, structured=False)
        asked(fake)
    assert ["response_format" in body for body in fake.bodies] == [False, True]


@pytest.mark.parametrize(
    ("status", "advice"),
    [("401", "API key"), ("403", "API key"), ("404", "`base_url`"), ("402", "quota is used up")],
)
def test_what_no_other_question_would_mend_ends_the_run(status: str, advice: str) -> None:
    """The server repeats the key in its message; we do not."""
    fake = FakeEndpoint(fault=lambda key, time: status)
    with fake, pytest.raises(JudgeError, match=advice) as caught:
        asked(fake)
    assert KEY not in str(caught.value)
    assert "***" in str(caught.value)
    assert sum(fake.requests.values()) == 1
    assert fake.headers[0]["authorization"] == f"Bearer {KEY}"


def test_a_long_wait_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gistkit.evaluation.judge.endpoint.LONGEST_WAIT", 0.01)
    with (
        FakeEndpoint(fault=script("limit")) as fake,
        pytest.raises(JudgeError, match="asks to wait"),
    ):
        asked(fake)


def test_all_wait_for_a_rate_limit() -> None:
    """A question that comes while another waits is not asked before the limit is over."""
    times: list[float] = []
    other = Question(Pair(1, "Instruction: Stay.", "a", "b"), False)

    async def run(fake: FakeEndpoint) -> None:
        async with Endpoint(EndpointConfig(model="m", base_url=fake.url), key=KEY) as endpoint:
            first = asyncio.create_task(endpoint.ask(QUESTION))
            while not times:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.03)  # the refusal is here
            await asyncio.gather(first, endpoint.ask(other))

    def fault(key: str, time: int) -> str | None:
        return "limit" if len(times) == 1 else None

    with FakeEndpoint(fault=fault, on_request=lambda key: times.append(time.monotonic())) as fake:
        asyncio.run(run(fake))
    assert len(times) == 3
    assert times[1] - times[0] >= 0.05


@contextmanager
def raw(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """A server that reads a request and then does what it likes; yields its base URL."""

    def serve(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, connection.makefile("rb") as file, suppress(OSError):
                    length = 0
                    while (line := file.readline()) not in (b"\r\n", b""):
                        if line.lower().startswith(b"content-length:"):
                            length = int(line.partition(b":")[2])
                    file.read(length)
                    answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(30)


def told(body: str) -> Reply:
    """What comes of a question that is answered by `body`."""
    data = body.encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    with raw(lambda connection: connection.sendall(head.encode() + data)) as url:
        return once(url, timeout=10)


def once(url: str, *, timeout: float) -> Reply:
    config = EndpointConfig(model="m", base_url=url, timeout=timeout, retries=0, backoff=0.01)

    async def run() -> Reply:
        async with Endpoint(config, key=KEY) as endpoint:
            return await endpoint.ask(QUESTION)

    return asyncio.run(run())


@pytest.mark.parametrize(
    "usage",
    ['"none"', "[1]", "3", '{"prompt_tokens": 1e999}', '{"prompt_tokens": -5}',
     '{"prompt_tokens": "x", "completion_tokens": 5.5}', '{"prompt_tokens": [1]}'],
)  # fmt: skip
def test_a_verdict_counts_whatever_is_said_of_its_tokens(usage: str) -> None:
    verdict = r'"{\"reason\": \"r\", \"choice\": \"A\"}"'
    answer = told(f'{{"choices": [{{"message": {{"content": {verdict}}}}}], "usage": {usage}}}')
    assert answer.verdict is not None
    assert answer.usage == Usage(1, 0, 0)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("[" * 100_000, "not the API's JSON"),
        ('{"a":' * 100_000, "not the API's JSON"),
        ("[]", "not the API's JSON"),
        ('{"choices": [{"message": null}]}', "not the API's JSON"),
        ('{"error": {"message": "upstream died"}}', "not the API's JSON"),
        (r'{"choices": [{"message": {"content": "\ud800"}}]}', "no verdict in '?'"),
    ],
)
def test_bodies_that_are_no_answer(body: str, error: str) -> None:
    answer = told(body)
    assert answer.verdict is None
    assert error in answer.error


def test_half_a_letter_can_be_asked_about_again() -> None:
    """The answer is repeated to the endpoint, which JSON's half of a letter could not be."""
    body = json.dumps({"choices": [{"message": {"content": "\ud800 is no verdict"}}]}).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with raw(lambda connection: connection.sendall(head.encode() + body)) as url:
        config = EndpointConfig(model="m", base_url=url, retries=1, backoff=0.01)

        async def run() -> Reply:
            async with Endpoint(config, key=KEY) as endpoint:
                return await endpoint.ask(QUESTION)

        answer = asyncio.run(run())
    assert answer.error == "no verdict in '? is no verdict'"
    assert answer.usage.requests == 2


def test_an_answer_that_comes_byte_by_byte_has_no_longer_than_any_other() -> None:
    """Every byte comes well within the time limit, all of them would take a minute."""

    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 600\r\n\r\n")
        for _ in range(50):
            connection.sendall(b" ")
            time.sleep(0.1)

    start = time.monotonic()
    with raw(drip) as url:
        answer = once(url, timeout=0.5)
        assert time.monotonic() - start < 4
    assert answer.error == "no answer within 0.5 s"
