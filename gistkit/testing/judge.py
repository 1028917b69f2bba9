"""An endpoint on loopback that speaks OpenAI's API, judges by a rule, and misbehaves on request.

    with FakeEndpoint() as endpoint:
        ...  # gistkit judge --base_url ENDPOINT.url

It prefers the longer answer in either order, so the expected verdicts are known.
"""

import json
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

FAULTS = (
    "limit", "limit_date", "error", "slow", "no_json", "cut_body", "hang_up", "truncated", "chatty",
    "invalid", "empty",
)  # fmt: skip


def faults(seed: int, *, most: int = 3) -> Callable[[str, int], str | None]:
    """A plan of faults: every question meets 0 to `most` of them, drawn by `seed`, then none."""

    def fault(key: str, time: int) -> str | None:
        rng = random.Random(f"{seed} {key}")
        times = rng.randint(0, most)
        return rng.choices(FAULTS, k=most)[time] if time < times else None

    return fault


@dataclass
class FakeEndpoint:
    """The server, while the context lasts.

    Attributes:
        fault: what goes wrong with the nth request (from 0) about a question; None: nothing.
        structured: whether it knows response_format; if not, it refuses it with status 400.
        slow: seconds that the fault "slow" takes.
        on_request: called with the question's key before it is answered.
        requests, judged: how many requests came, and how many verdicts were sent, by key.
        headers, bodies: of all requests; names of headers are lower-case.
    """

    fault: Callable[[str, int], str | None] = lambda key, time: None
    structured: bool = True
    slow: float = 2.0
    on_request: Callable[[str], object] = lambda key: None
    requests: Counter[str] = field(default_factory=Counter)
    judged: Counter[str] = field(default_factory=Counter)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def __enter__(self) -> Self:
        endpoint: FakeEndpoint = self
        self.lock, self.over = threading.Lock(), threading.Event()

        class Handler(_Handler):
            fake = endpoint

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"


def key_of(question: str) -> str:
    """The key of a question in `requests` and `judged`."""
    return sha256(question.encode()).hexdigest()[:16]


def rule(question: str) -> str:
    """What the endpoint says of a question: the longer answer; a tie where they are as long."""
    answers = [
        question.partition(f"[Answer {name}]\n")[2].partition(f"\n[End of answer {name}]")[0]
        for name in "AB"
    ]
    a, b = map(len, answers)
    return "tie" if a == b else "AB"[b > a]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # a client that finds the queue full waits a second

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients may hang up
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeEndpoint

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fake = self.fake
        question = body["messages"][1]["content"]
        key = key_of(question)
        with fake.lock:
            fake.headers.append({name.lower(): value for name, value in self.headers.items()})
            fake.bodies.append(body)
            if not fake.structured and "response_format" in body:
                return self._refuse(400, "response_format is not known")
            time = fake.requests[key]
            fake.requests[key] += 1
        fake.on_request(key)
        fault = fake.fault(key, time)
        try:
            if fault is None or fault == "chatty":
                self._judge(rule(question), chatty=fault == "chatty")
                with fake.lock:
                    fake.judged[key] += 1
            else:
                self._misbehave(fault, rule(question))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client timed out

    def _judge(self, choice: str, *, chatty: bool) -> None:
        verdict = json.dumps({"reason": "It is longer.", "choice": choice})
        if chatty:
            verdict = f"Let me think {{about it}}.\n```json\n{verdict}\n```\nAnything else?"
        self._send(200, _completion(verdict))

    def _misbehave(self, fault: str, choice: str) -> None:
        match fault:
            case "limit":
                self._refuse(429, "slow down", {"Retry-After": "0.05"})
            case "limit_date":
                self._refuse(429, "slow down", {"Retry-After": self.date_time_string()})
            case "error":
                self._refuse(500, "overloaded")
            case "slow":
                self.fake.over.wait(self.fake.slow)
                self._send(200, _completion(json.dumps({"reason": "late", "choice": "tie"})))
            case "no_json":
                self._send(200, b'{"choices": [{"mess')
            case "cut_body":
                self._send(200, _completion("{}"), missing=100)
            case "hang_up":
                self.close_connection = True
            case "truncated":
                self._send(200, _completion('{"reason": "It is longer and', "length"))
            case "invalid":
                self._send(200, _completion('{"reason": "Neither.", "choice": "C"}'))
            case "empty":
                self._send(200, _completion(""))
            case status:  # any other HTTP status
                self._refuse(int(status), f"no, key {self.headers['Authorization']}")

    def _refuse(self, status: int, why: str, headers: dict[str, str] | None = None) -> None:
        body = json.dumps({"error": {"message": why, "type": "fake", "code": None}}).encode()
        self._send(status, body, headers=headers)

    def _send(
        self, status: int, body: bytes, *, headers: dict[str, str] | None = None, missing: int = 0
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) + missing))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        if missing:
            self.close_connection = True


def _completion(content: str, ended: str = "stop") -> bytes:
    """An answer of 100 prompt tokens and 10 completion tokens."""
    choice = {
        "index": 0,
        "finish_reason": ended,
        "message": {"role": "assistant", "content": content},
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    body = {"id": "fake", "object": "chat.completion", "created": 0, "model": "fake"}
    return json.dumps({**body, "choices": [choice], "usage": usage}).encode()
