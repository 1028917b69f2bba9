"""`/v1/completions`, as the openai client sees it."""

from typing import Any

import openai
import pytest

from tests.serving.http_running import Running


def ask(server: Running, prompt: Any = "one two three", **options: Any) -> Any:
    return server.client().completions.create(model="tiny", prompt=prompt, **options)


def test_a_prompt_alone(server: Running) -> None:
    found = ask(server)
    assert found.choices[0].text == "full: one two three"
    assert (found.object, found.choices[0].finish_reason) == ("text_completion", "stop")
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (3, 4)
    assert found.gist["status"] == "off"


def test_an_instruction_is_gisted(server: Running) -> None:
    found = ask(server, extra_body={"instruction": "Be brief."})
    assert found.choices[0].text == "gist: one two three"
    assert found.usage.prompt_tokens_details.cached_tokens == 1


def test_many_prompts_and_several_answers_to_each(server: Running) -> None:
    found = ask(server, ["a", "b", "c"], n=2, extra_body={"instruction": "Be brief."})
    texts = [(choice.index, choice.text) for choice in found.choices]
    assert texts == list(enumerate(["gist: a"] * 2 + ["gist: b"] * 2 + ["gist: c"] * 2))
    usage = found.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (3 * 2, 6 * 2)
    assert usage.prompt_tokens_details.cached_tokens == 3
    assert usage.replaced_tokens == 3 * found.gist["instruction_tokens"]


def test_streamed(server: Running) -> None:
    texts = dict.fromkeys(range(4), "")
    chunks = list(ask(server, ["a", "b b"], n=2, stream=True))
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {0: "full: a", 1: "full: a", 2: "full: b b", 3: "full: b b"}
    assert chunks[0].gist["status"] == "off"
    assert sum(chunk.choices[0].finish_reason == "stop" for chunk in chunks) == 4


def test_sixteen_tokens_are_openais_default(server: Running) -> None:
    found = ask(server, "word " * 40)
    assert (found.usage.completion_tokens, found.choices[0].finish_reason) == (16, "length")


def test_log_probabilities_and_where_tokens_stand(server: Running) -> None:
    found = ask(server, logprobs=2, max_tokens=3).choices[0].logprobs
    assert found.tokens == ["full:", "one", "two"]
    assert found.text_offset == [0, 5, 8]
    assert found.token_logprobs == [-0.5] * 3
    assert found.top_logprobs[1] == {"one": -0.5, "other": -9999.0}
    streamed = [c.choices[0].logprobs for c in ask(server, logprobs=0, max_tokens=3, stream=True)]
    assert [offset for part in streamed for offset in part.text_offset] == [0, 5, 8]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"n": 17}, "n"),
        ({"prompt": ["a"] * 9, "n": 2}, "n"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, 2]}, "prompt.0"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 6}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    server: Running, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(server, **options)
    assert caught.value.param == param
