"""`/v1/chat/completions`, as the openai client sees it."""

from http_running import Running

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


def test_without_asking_a_stream_tells_no_usage(server: Running) -> None:
    chunks = list(server.client().chat.completions.create(**ASK, stream=True))
    assert all(c.usage is None and c.choices for c in chunks)
