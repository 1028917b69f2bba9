"""Requests that schemathesis makes up from the OpenAPI document: none may be answered by a 5xx.

Half of them keep to the document and half do not; half name the model and a gist that are there,
else nearly all of them would end at their first check.
"""

import random
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gistkit.serving.transformers_engine import TransformersEngine
from gistkit.store import GistStore
from gistkit.testing import tiny_gist_model
from tests.serving.http_running import Running, running

CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
GROWTH = 300 * 2**20
"""Bytes that the process may grow by; one request is at most 1 MiB."""


def memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Fuzz:
    """Sends made-up requests and judges the answers."""

    def __init__(self, server: Running) -> None:
        self.server, self.statuses = server, Counter[int]()
        self.session = server.opened.enter_context(requests.Session())
        self.session.trust_env = False
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        self.operations = [result.ok() for result in schema.get_all_operations()]
        assert len(self.operations) == 15
        made = server.http().post("/v1/gists", json={"instruction": "Be brief.", "pinned": True})
        self.id = made.json()["id"]
        self.file = server.http().get(f"/v1/gists/{self.id}/file").content

    @property
    def sent(self) -> int:
        return self.statuses.total()

    def run(self, least: int, each: int) -> None:
        """At least so many requests, in rounds of `each` to every operation in either mode."""
        number = 0
        while self.sent < least:
            before = self.sent
            for operation in self.operations:
                for mode in MODES:
                    self._some(operation, mode, each, number)
            number += 1
            assert self.sent > before

    def _some(self, operation: Any, mode: Any, each: int, number: int) -> None:
        @seed(number)
        @settings(
            max_examples=each,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(
            case=operation.as_strategy(generation_mode=mode),
            known=st.booleans(),
            flip=st.none() | st.integers(0, 8 * len(self.file) - 1),
        )
        def send(case: Any, known: bool, flip: int | None) -> None:
            if known:
                self._mend(case, flip)
            response = case.call(session=self.session, timeout=60)
            self.statuses[response.status_code] += 1
            case.validate_response(response, checks=CHECKS)

        try:
            send()
        except Unsatisfiable:  # what takes no parameters can be asked in one way only
            assert mode is schemathesis.GenerationMode.NEGATIVE

    def _mend(self, case: Any, flip: int | None) -> None:
        if isinstance(case.body, dict):
            if "model" in case.body:
                case.body["model"] = self.server.engine.name
                case.body["stream"] = flip is not None
            if type(case.body.get("max_tokens")) is int and case.body["max_tokens"] > 50:
                case.body["max_tokens"] = 50
            if isinstance(case.body.get("messages"), list) and flip is None:
                case.body["messages"] = [{"role": "user", "content": "a"}, *case.body["messages"]]
        if "id" in case.path_parameters and case.method != "DELETE":
            case.path_parameters["id"] = self.id
        if case.path.endswith("/gists/file"):
            data = bytearray(self.file)
            if flip is not None:
                data[flip // 8] ^= 1 << flip % 8
            case.body = bytes(data)


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Running]:
    with (
        GistStore(tmp_path / "real") as store,
        running(TransformersEngine(tiny_gist_model(), store, name="tiny", max_length=128)) as found,
    ):
        yield found


def test_a_few_hundred_made_up_requests(server: Running) -> None:
    fuzz = Fuzz(server)
    before = memory()
    fuzz.run(200, 10)
    assert fuzz.statuses[200] > 20 and fuzz.statuses[400] > 20
    assert max(fuzz.statuses) < 500 and memory() - before < GROWTH
    assert server.http().get("/health/ready").status_code == 200


@pytest.mark.slow
def test_five_thousand_made_up_requests(server: Running, real: Running) -> None:
    for number, (running_server, least) in enumerate(((server, 4500), (real, 500))):
        random.seed(number)
        fuzz = Fuzz(running_server)
        before = memory()
        fuzz.run(least, 60)
        print(dict(fuzz.statuses), memory() - before)
        assert fuzz.statuses[200] > 0.02 * least and fuzz.statuses[400] > 0.1 * least
        assert max(fuzz.statuses) < 500 and memory() - before < GROWTH
        ready = running_server.http().get("/health/ready")
        assert ready.status_code == 200
        assert running_server.service.running == 0


def test_the_fuzzer_would_find_a_5xx(server: Running) -> None:
    server.engine.stats = lambda: {"what": "no number"}
    with pytest.raises(BaseException, match="Server error"):
        Fuzz(server).run(1, 1)
