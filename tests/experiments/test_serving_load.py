"""The load on a server counts what goes wrong, and its memory is watched."""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from experiments.serving import load as serving_load
from experiments.serving import questions
from experiments.serving.client import Ask, Tally, load
from experiments.serving.load_report import to_markdown
from experiments.serving.process import Memory, started

RIGHT = [
    {"choices": [{"delta": {"content": "one "}}], "gist": {"status": "used"}},
    {"choices": [{"delta": {"content": "cake"}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"completion_tokens": 3}},
]


def streamed(events: Sequence[object]) -> bytes:
    chunks = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
    chunks.append(b"data: [DONE]\n\n")
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
    return head + b"\r\n" + body


def refused(status: int) -> bytes:
    body = json.dumps({"detail": "no"}).encode()
    head = f"HTTP/1.1 {status} No\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def under_load(answer: bytes, *, clients: int = 2) -> Tally:
    """What is counted where every request is answered so."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split()[0])
                assert json.loads(await reader.readexactly(length)) == {"model": "m"}
                await asyncio.sleep(0.01)
                writer.write(answer)
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        asks = [Ask({"model": "m"}, "one cake")]
        tally, took = await load(port, "/v1", asks, clients=clients, seconds=0.2, seed=0)
        assert took >= 0.2
    return tally


def test_right_answers_are_timed_and_counted() -> None:
    tally = asyncio.run(under_load(streamed(RIGHT)))
    number = len(tally.ended)
    assert number >= 4
    assert tally.statuses == {200: number}
    assert tally.gists == {"used": number}
    assert tally.tokens == 3 * number
    assert tally.wrong_count == 0
    assert tally.broken == []
    assert all(
        0.01 <= first <= whole for first, whole in zip(tally.first, tally.whole, strict=True)
    )


def test_a_wrong_answer_is_found() -> None:
    tally = asyncio.run(under_load(streamed([RIGHT[1]])))
    assert tally.wrong_count == len(tally.ended) > 0
    number, seconds, text = tally.wrong[0]
    assert (number, text) == (0, "cake")
    assert seconds < 1


def test_failures_are_no_answers() -> None:
    tally = asyncio.run(under_load(refused(503)))
    assert set(tally.statuses) == {503}
    assert tally.ended == []
    broken = asyncio.run(under_load(streamed(RIGHT[:1])))
    assert broken.ended == []
    assert "broke off" in broken.broken[0]
    error = asyncio.run(under_load(streamed([{"error": {"message": "stopped"}}])))
    assert "stopped" in error.broken[0]


def test_the_slope_of_memory_leaves_out_the_beginning() -> None:
    growing = Memory([0.0, 1.0, 60.0, 120.0, 180.0], [0, 500, 1000, 1100, 1200])
    assert growing.slope(60) == pytest.approx(100)
    assert Memory([0.0, 60.0, 120.0], [0, 7, 7]).slope(60) == 0


def test_a_server_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no model here')"]
    with (
        pytest.raises(RuntimeError, match="no model here"),
        started(command, port=1, alive="/", folder=tmp_path, env=dict(os.environ)),
    ):
        pass


def test_long_prompts_fill_the_models_positions() -> None:
    model = serving_load.GistModel.from_pretrained("toy")
    for one in questions.requests(model, 3, 2, seed=0, positions=512):
        tokens = len(model.encoder.prompt(one.instruction, one.input, 8))
        assert 400 < tokens <= 512 - questions.ANSWER


@pytest.mark.slow
def test_a_short_run_is_right_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--quick", "--clients", "8", "--without-transformers", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["serving_load", *options])
    serving_load.main()
    (written,) = tmp_path.glob("serving_load_*.json")
    result = json.loads(written.read_text())
    assert result["schema_version"] == serving_load.SCHEMA_VERSION
    assert set(result["loads"]) == {"gist", "long, gist", "long, full prompt"}
    for side, found in result["loads"].items():
        assert found["requests"] > 0, side
        assert found["wrong_count"] == found["server_errors"] == found["broken_count"] == 0, side
        assert set(found["gists"]) == {"off" if "full" in side else "used"}
    assert len(result["loads"]["gist"]["memory"]["rss"]) >= 5
    assert result["log_above_info"] == []
    assert to_markdown(result).strip() in capsys.readouterr().out
