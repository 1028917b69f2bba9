"""`/v1/chat/completions`, as the openai client sees it."""

import asyncio
from typing import Any

import openai
import pytest

from gistkit.serving.settings import Settings
from tests.serving.fake_engine import FakeEngine
from tests.serving.http_running import Running, running

SYSTEM = {"role": "system", "content": "Answer in one word."}
USER = {"role": "user", "content": "one two three"}
ASK = {"model": "tiny", "messages": [SYSTEM, USER]}


def test_the_system_prompt_is_gisted_by_itself(server: Running) -> None:
    found = server.client().chat.completions.create(**ASK)
    choice = found.choices[0]
    assert choice.message.content == "gist: one two three"
    assert choice.finish_reason == "stop"
    gist = found.gist
    assert (gist["status"], gist["k"], gist["reason"]) == ("used", 1, None)
    assert len(gist["id"]) == 64
    usage = found.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (4, 4, 8)
    assert usage.prompt_tokens_details.cached_tokens == 1
    assert usage.replaced_tokens == gist["instruction_tokens"] > 10
    assert usage.kv_bytes > 0


def test_streamed_pieces_are_the_whole_answer(server: Running) -> None:
    chunks = list(
        server.client().chat.completions.create(
            **ASK, stream=True, stream_options={"include_usage": True}
        )
    )
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == "gist: one two three"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].gist["status"] == "used"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 4
    assert chunks[-1].gist["status"] == "used"
    assert all(c.usage is None for c in chunks[:-1])


def test_an_answer_can_come_back_as_the_client_has_it(server: Running) -> None:
    answer = server.client().chat.completions.create(**ASK).choices[0].message
    found = ask(server, USER, answer, USER).choices[0].message.content
    assert found == "full: one two three gist: one two three one two three"


def test_without_asking_a_stream_tells_no_usage(server: Running) -> None:
    chunks = list(server.client().chat.completions.create(**ASK, stream=True))
    assert all(c.usage is None and c.choices for c in chunks)


def ask(server: Running, *messages: Any, **options: Any) -> Any:
    return server.client().chat.completions.create(
        model="tiny", messages=list(messages) or [SYSTEM, USER], **options
    )


def test_several_answers_a_stop_string_and_a_seed(server: Running) -> None:
    found = ask(server, n=3, stop=["two"], seed=-5, temperature=0.5, top_p=0.9)
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert {choice.message.content for choice in found.choices} == {"gist: one"}
    assert {choice.finish_reason for choice in found.choices} == {"stop"}
    (sampling,) = server.engine.samplings
    assert (sampling.n, sampling.stop, sampling.seed) == (3, ("two",), -5)
    assert (sampling.temperature, sampling.top_p) == (0.5, 0.9)


def test_no_stop_strings_at_all(server: Running) -> None:
    ask(server, stop=[])
    assert server.engine.samplings[0].stop == ()


def test_streamed_answers_are_told_apart(server: Running) -> None:
    texts = {0: "", 1: ""}
    for chunk in ask(server, n=2, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: "gist: one two three", 1: "gist: one two three"}


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_that_is_cut_off_says_so(server: Running, name: str) -> None:
    found = ask(server, **{name: 2})
    assert found.choices[0].message.content == "gist: one"
    assert found.choices[0].finish_reason == "length"
    assert found.usage.completion_tokens == 2


def test_log_probabilities(server: Running) -> None:
    found = ask(server, logprobs=True, top_logprobs=2, max_tokens=2).choices[0].logprobs.content
    assert [(one.token, one.logprob, one.bytes) for one in found] == [
        ("gist:", -0.5, list(b"gist:")),
        ("one", -0.5, list(b"one")),
    ]
    top = [(one.token, one.logprob) for one in found[0].top_logprobs]
    assert top == [("gist:", -0.5), ("other", -9999.0)]  # what JSON cannot say
    chunks = list(ask(server, logprobs=True, max_tokens=1, stream=True))
    told = [c.choices[0].logprobs for c in chunks if c.choices[0].logprobs]
    assert [one.token for part in told for one in part.content] == ["gist:"]
    assert ask(server).choices[0].logprobs is None


def test_how_much_is_answered_where_nobody_says(server: Running) -> None:
    ask(server)
    ask(server, SYSTEM, {"role": "user", "content": "word " * 400})
    assert [one.max_tokens for one in server.engine.samplings] == [508, 111]  # of 512 positions


def test_off_in_the_body_or_the_header_is_the_full_prompt(server: Running) -> None:
    for options in ({"extra_body": {"gist": "off"}}, {"extra_headers": {"X-Gist": "off"}}):
        found = ask(server, **options)
        assert found.choices[0].message.content == "full: Answer in one word. one two three"
        assert found.gist["status"] == "off"
        assert found.usage.prompt_tokens_details.cached_tokens == found.usage.replaced_tokens == 0
    assert server.engine.store.entries() == []


def test_the_body_goes_before_the_header(server: Running) -> None:
    found = ask(server, extra_body={"gist": "auto"}, extra_headers={"X-Gist": "off"})
    assert found.gist["status"] == "used"


def test_k_can_be_asked_for(server: Running) -> None:
    found = ask(server, extra_body={"gist_tokens": 4})
    assert (found.gist["k"], found.usage.prompt_tokens_details.cached_tokens) == (4, 4)


def test_a_gist_by_its_id_needs_no_text(server: Running) -> None:
    id = ask(server).gist["id"]
    for messages in ([USER], [SYSTEM, USER]):
        found = ask(server, *messages, extra_body={"gist": id})
        assert found.choices[0].message.content == "gist: one two three"
        assert found.gist["id"] == id
        assert found.usage.replaced_tokens == found.gist["instruction_tokens"] > 0


@pytest.mark.parametrize(
    ("system", "more", "reason"),
    [
        ("x" * 600, {}, "more than the 512"),  # bytes are tokens here, words are the fake's
        ("Be brief.", {"gist_tokens": 3}, "trained for 1, 2, 4 gist tokens, not 3"),
        ("Be brief.", {"gist": "0" * 64}, "no gist 000"),
    ],
)
def test_what_cannot_be_gisted_is_read_in_full_and_said(
    server: Running, system: str, more: dict[str, Any], reason: str
) -> None:
    found = ask(server, {"role": "system", "content": system}, USER, extra_body=more)
    assert found.choices[0].message.content == f"full: {system} one two three"
    assert found.gist["status"] == "refused"
    assert reason in found.gist["reason"]
    assert found.usage.prompt_tokens_details.cached_tokens == 0


def test_another_instructions_gist_is_not_used(server: Running) -> None:
    id = ask(server, {"role": "system", "content": "Be brief."}, USER).gist["id"]
    found = ask(server, extra_body={"gist": id})
    assert found.choices[0].message.content.startswith("full:")
    assert "another instruction" in found.gist["reason"]


def test_a_gist_below_the_least_fidelity_is_not_used(fake: FakeEngine) -> None:
    fake.score = 0.4
    with running(fake, settings=Settings(min_fidelity=0.5)) as server:
        id = ask(server).gist["id"]  # nobody has measured it
        assert server.http().post(f"/v1/gists/{id}/check", json={"instruction": SYSTEM["content"]})
        found = ask(server)
        assert found.choices[0].message.content.startswith("full:")
        assert found.gist["status"] == "refused"
        assert "fidelity 0.400 is below 0.5" in found.gist["reason"]
        with pytest.raises(openai.BadRequestError, match="not safe") as caught:
            ask(server, USER, extra_body={"gist": id})
        assert caught.value.code == "gist_below_min_fidelity"


def test_what_clients_send_for_caches_is_accepted(server: Running) -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    part = {"type": "text", "text": "Answer in one word.", **mark}
    found = ask(
        server,
        {"role": "system", "content": [part], **mark},
        {"role": "user", "content": [{"type": "text", "text": "one two three", **mark}]},
        user="me",
        metadata={"a": "b"},
        extra_body={**mark, "prompt_cache_key": "k"},
    )
    assert found.choices[0].message.content == "gist: one two three"
    assert found.gist["id"] == ask(server).gist["id"]


def test_a_conversation_of_many_turns(server: Running) -> None:
    found = ask(
        server,
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "one", "name": "me"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    )
    assert found.choices[0].message.content == "gist: one two three"


def test_an_instruction_alone_is_enough(server: Running) -> None:
    assert ask(server, SYSTEM).choices[0].message.content == "gist:"


def test_without_an_instruction_there_is_nothing_to_gist(server: Running) -> None:
    found = ask(server, USER)
    assert found.choices[0].message.content == "full: one two three"
    assert (found.gist["status"], found.gist["id"]) == ("off", None)


def test_an_answer_whole_and_in_pieces_is_the_same(server: Running) -> None:
    with server.client().chat.completions.stream(model="tiny", messages=[SYSTEM, USER]) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == ask(server).choices[0].message.content


def test_the_client_for_coroutines(server: Running) -> None:
    async def work() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            found = await asyncio.gather(
                *(client.chat.completions.create(**ASK, max_tokens=n) for n in range(1, 9))
            )
        words = ["gist:", "one", "two", "three"]
        for n, one in enumerate(found, 1):
            assert one.choices[0].message.content == " ".join(words[:n])

    asyncio.run(work())
    assert server.engine.store.stats()["compressed"] == 1
