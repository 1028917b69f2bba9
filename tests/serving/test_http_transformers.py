"""The openai client on the transformers engine, tiny model inside: what `generate` says."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import openai
import pytest

from gistkit.serving.transformers_engine import TransformersEngine
from gistkit.serving.worker import Batch
from gistkit.store import GistStore
from gistkit.testing import tiny_gist_model
from tests.serving.http_running import Running, running, wait_for

BRIEF = {"role": "system", "content": "Be brief."}


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Running]:
    with (
        GistStore(tmp_path / "store") as store,
        running(TransformersEngine(tiny_gist_model(), store, name="tiny")) as found,
    ):
        yield found


def ask(server: Running, text: str = "abc", **options: Any) -> Any:
    return server.client().chat.completions.create(
        model="tiny", messages=[BRIEF, {"role": "user", "content": text}], **options
    )


def test_whole_streamed_stopped_and_with_log_probabilities(tiny: Running) -> None:
    model = tiny.engine.model
    gist = model.compress("Be brief.")
    expected = model.generate("abc", gist, max_new_tokens=12)[0]
    whole = ask(tiny, max_tokens=12, logprobs=True, top_logprobs=3)
    assert whole.choices[0].message.content == expected
    assert whole.usage.completion_tokens == 12 and whole.choices[0].finish_reason == "length"
    assert whole.usage.prompt_tokens == 1 + len(model.encoder.input("abc"))
    told = whole.choices[0].logprobs.content
    assert "".join(one.token for one in told) == expected
    for one in told:  # greedy: the token itself is the likeliest
        assert one.top_logprobs[0].token == one.token and len(one.top_logprobs) == 3
        assert one.logprob == pytest.approx(one.top_logprobs[0].logprob) and one.logprob <= 0
    pieces = [c.choices[0].delta.content or "" for c in ask(tiny, max_tokens=12, stream=True)]
    assert "".join(pieces) == expected and len(pieces) >= 3  # role, text, end
    stop = expected[4:6]
    stopped = ask(tiny, max_tokens=12, stop=stop)
    assert stopped.choices[0].message.content == expected[: expected.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    full = ask(tiny, max_tokens=12, extra_body={"gist": "off"})
    assert full.usage.prompt_tokens == len(model.encoder.prompt("Be brief.", "abc", 1))


@pytest.mark.parametrize("gist", ["auto", "off"])
def test_a_blank_system_prompt_is_none(tiny: Running, gist: str) -> None:
    """Clients that always send one send an empty one, or a space."""
    expected = tiny.engine.model.generate("abc", max_new_tokens=12)[0]
    for content in ("", " ", "\n\t"):
        found = tiny.client().chat.completions.create(
            model="tiny",
            messages=[{"role": "system", "content": content}, {"role": "user", "content": "abc"}],
            max_tokens=12,
            extra_body={"gist": gist},
        )
        assert found.choices[0].message.content == expected
        assert found.gist["status"] == "off"


def test_a_seed_repeats_its_answers(tiny: Running) -> None:
    options: dict[str, Any] = {"max_tokens": 10, "n": 4, "temperature": 1.5, "seed": 7}
    first, again, other = (
        [choice.message.content for choice in ask(tiny, **{**options, **more}).choices]
        for more in ({}, {}, {"seed": 8})
    )
    assert first == again != other
    assert len(set(first)) > 1  # each of the n has chances of its own


def test_many_clients_at_once_get_what_one_would(tiny: Running) -> None:
    model = tiny.engine.model
    instructions = [f"Be brief {n}." for n in range(4)]

    async def one(client: openai.AsyncOpenAI, number: int) -> None:
        instruction = instructions[number % 4]
        found = await client.chat.completions.create(
            model="tiny",
            messages=[
                {"role": "system", "content": instruction},
                {"role": "user", "content": f"input {number}"},
            ],
            max_tokens=5 + number % 7,
        )
        gist = model.compress(instruction)
        expected = model.generate(f"input {number}", gist, max_new_tokens=5 + number % 7)
        assert found.choices[0].message.content == expected[0]

    async def work() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{tiny.url}/v1", api_key="none", max_retries=0, timeout=60
        ) as client:
            await asyncio.gather(*(one(client, number) for number in range(24)))

    asyncio.run(work())
    assert tiny.service.store.stats()["compressed"] == 4


def test_a_client_that_leaves_frees_its_row(tiny: Running) -> None:
    with pytest.raises(httpx.ReadTimeout):
        tiny.http().post(
            "/v1/completions",
            json={"model": "tiny", "prompt": "abc", "max_tokens": 480, "n": 16},
            timeout=0.2,
        )
    ask(tiny, max_tokens=1)
    wait_for(lambda: tiny.engine.stats()["running"] == tiny.engine.stats()["kv_bytes"] == 0)
    assert tiny.engine.stats()["tokens"] < 480 * 16


def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    proceed, step = threading.Event(), Batch.step

    def held(batch: Batch) -> None:
        assert proceed.wait(60)
        step(batch)

    with (
        GistStore(tmp_path / "store") as store,
        running(
            TransformersEngine(tiny_gist_model(), store, name="tiny", max_waiting=1, max_rows=1)
        ) as server,
    ):

        async def work() -> list[Any]:
            async with openai.AsyncOpenAI(
                base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60
            ) as client:
                create = client.completions.create
                tasks = [
                    asyncio.ensure_future(create(model="tiny", prompt="abc", max_tokens=300))
                    for _ in range(6)
                ]
                while sum(task.done() for task in tasks) < 4:  # one runs, one waits
                    await asyncio.sleep(0.01)
                proceed.set()
                return await asyncio.gather(*tasks, return_exceptions=True)

        with patch.object(Batch, "step", held):
            found = asyncio.run(work())
        refused = [one for one in found if isinstance(one, openai.RateLimitError)]
        answered = [one for one in found if isinstance(one, openai.types.Completion)]
        assert refused and answered and len(refused) + len(answered) == 6
        assert all(int(one.response.headers["retry-after"]) >= 1 for one in refused)


def test_messages_name_no_parameters_of_python(tiny: Running) -> None:
    reason = ask(tiny, max_tokens=1, extra_body={"gist_tokens": 3}).gist["reason"]
    assert reason == "this model was trained for 1, 2, 4 gist tokens, not 3; choose one"
    made = tiny.http().post("/v1/gists", json={"instruction": "Be brief.", "k": 3})
    assert (made.status_code, made.json()["error"]["message"]) == (400, reason)


def test_its_fidelity_is_measured_and_kept(tiny: Running) -> None:
    id = ask(tiny, max_tokens=1).gist["id"]
    body = {"instruction": "Be brief.", "probes": ["one", "two"]}
    found = tiny.http().post(f"/v1/gists/{id}/check", json=body)
    assert found.status_code == 200 and 0 <= found.json()["score"] <= 1
    assert tiny.http().get(f"/v1/gists/{id}").json()["fidelity"] == found.json()
    other = tiny.http().post(f"/v1/gists/{id}/check", json={"instruction": "Be long."})
    assert other.status_code == 400 and other.json()["error"]["code"] == "gist_mismatch"
