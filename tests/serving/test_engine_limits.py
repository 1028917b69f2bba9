"""Too much at once, too much at all, leaving early, stopping, and steps that fail."""

import asyncio
import threading
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from gistkit.errors import BusyError, GistMismatchError, PromptError, UnavailableError
from gistkit.serving.engine import Prompt, Sampling, StreamChunk
from gistkit.serving.transformers_engine import TransformersEngine
from gistkit.serving.worker import Batch
from gistkit.testing import tiny_gist_model
from tests.serving.engine_running import answer, serving, stream, texts, until

LONG = Sampling(400)


async def begun(
    engine: TransformersEngine, text: str = "abc", **more: Any
) -> AsyncIterator[StreamChunk]:
    """A long answer, of which the first chunk has come."""
    chunks = stream(engine, text, LONG, **more)
    await anext(chunks)
    return chunks


async def close(*all_pieces: Any) -> None:
    for pieces in all_pieces:
        await pieces.aclose()


def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    async def work(engine: TransformersEngine) -> None:
        running = await begun(engine)
        waiting = [asyncio.create_task(answer(engine, "x", Sampling(3))) for _ in range(2)]
        await until(lambda: engine.stats()["waiting"] == 2)
        with pytest.raises(BusyError, match="2 requests are waiting") as busy:
            await answer(engine, "y", Sampling(3))
        assert 1 <= busy.value.retry_after <= 60
        await close(running)
        await asyncio.gather(*waiting)
        await answer(engine, "y", Sampling(3))  # there is room again

    serving(tmp_path, tiny_gist_model(), work, max_rows=1, max_waiting=2)


def test_leaving_early_frees_the_rows(tmp_path: Path) -> None:
    async def work(engine: TransformersEngine) -> None:
        running = await begun(engine)
        waiting = asyncio.create_task(answer(engine, "x", LONG))
        await until(lambda: engine.stats()["waiting"] == 1)
        waiting.cancel()
        await until(lambda: engine.stats()["waiting"] == 0)
        await close(running)
        await until(lambda: engine.stats()["running"] == engine.stats()["kv_bytes"] == 0)
        assert engine.stats()["tokens"] < 200

    serving(tmp_path, tiny_gist_model(), work, max_rows=1)


def test_clients_take_turns(tmp_path: Path) -> None:
    order: list[str] = []

    async def work(engine: TransformersEngine) -> None:
        running = await begun(engine, client="greedy")

        async def one(client: str) -> None:
            await answer(engine, "x", Sampling(2), client=client)
            order.append(client)

        tasks = [asyncio.create_task(one(c)) for c in [*"aaaa", *"bb", "c"]]
        await until(lambda: engine.stats()["waiting"] == 7)
        await close(running)
        await asyncio.gather(*tasks)
        assert "".join(order) == "abcabaa"

    serving(tmp_path, tiny_gist_model(), work, max_rows=1)


def test_memory_is_reserved_for_whole_answers(tmp_path: Path) -> None:
    model = tiny_gist_model()
    limit = 300 * model.adapter.kv_bytes_per_token

    async def work(engine: TransformersEngine) -> None:
        asked = [(("x" * (7 * i % 60)), Sampling(20 + 13 * i % 70)) for i in range(30)]
        tasks = [asyncio.create_task(answer(engine, x, how)) for x, how in asked]
        most, together = 0.0, 0.0
        while not all(task.done() for task in tasks):
            most = max(most, engine.stats()["kv_bytes"])
            together = max(together, engine.stats()["running"])
            await asyncio.sleep(0.001)
        assert most <= limit and together > 1
        for (text, how), task in zip(asked, tasks, strict=True):
            assert texts(task.result()) == model.generate(text, max_new_tokens=how.max_tokens)

    serving(tmp_path, model, work, kv_limit=limit)


def test_what_can_never_be_answered_is_refused_with_advice(tmp_path: Path) -> None:
    model = tiny_gist_model()

    async def work(engine: TransformersEngine) -> None:
        with pytest.raises(PromptError, match=r"lower max_tokens or n"):
            await answer(engine, "x", Sampling(80, n=4))
        with pytest.raises(PromptError, match="more than the 512 allowed here"):
            await answer(engine, "x", Sampling(600))
        with pytest.raises(PromptError, match="<GIST>"):
            await answer(engine, "<GIST>", Sampling(6))
        other = tiny_gist_model(seed=1).compress("Be brief.")
        with pytest.raises(GistMismatchError):
            await answer(engine, "x", Sampling(6), gist=other)

    serving(tmp_path, model, work, kv_limit=200 * model.adapter.kv_bytes_per_token)


def test_stopping_ends_what_runs_and_what_waits(tmp_path: Path) -> None:
    async def work(engine: TransformersEngine) -> None:
        running = await begun(engine)
        waiting = asyncio.create_task(answer(engine, "x", LONG))
        await until(lambda: engine.stats()["waiting"] == 1)
        await engine.stop()
        with pytest.raises(UnavailableError):
            await waiting
        with pytest.raises(UnavailableError):
            [chunk async for chunk in running]
        for late in (answer(engine, "x", LONG), engine.compress("Be brief.")):
            with pytest.raises(UnavailableError):
                await late

    serving(tmp_path, tiny_gist_model(), work, max_rows=1)


@pytest.mark.parametrize(
    ("error", "told"),
    [(RuntimeError("a bug"), UnavailableError), (torch.OutOfMemoryError("cuda"), BusyError)],
)
@pytest.mark.parametrize("where", ["begin", "join", "sample", "step"])
def test_a_step_that_fails_ends_its_requests_and_no_others(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    error: Exception,
    told: type[Exception],
) -> None:
    model = tiny_gist_model()
    expected = model.generate("abc", max_new_tokens=400)

    async def work(engine: TransformersEngine) -> None:
        pieces = await begun(engine)

        def fail(*_: Any, **__: Any) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Batch, where, fail)
            with pytest.raises(told):
                await answer(engine, "x", LONG)
        if where == "begin":  # of the other one; this one was running
            await close(pieces)
        else:
            with pytest.raises(told):
                [chunk async for chunk in pieces]
        assert texts(await answer(engine, "abc", LONG)) == expected
        await until(lambda: engine.stats()["running"] == 0)

    serving(tmp_path, model, work)


def test_the_event_loop_stays_free(tmp_path: Path) -> None:
    async def work(engine: TransformersEngine) -> None:
        tasks = [asyncio.create_task(answer(engine, "x" * i, Sampling(60))) for i in range(20)]
        await until(computing.is_set)
        turns = 0
        while turns < 1000:
            await asyncio.sleep(0)
            turns += 1
        waiting = engine.stats()["waiting"]
        late = asyncio.create_task(answer(engine, "x", Sampling(1)))
        await until(lambda: engine.stats()["waiting"] == waiting + 1)
        late.cancel()
        await until(lambda: engine.stats()["waiting"] == waiting)
        assert not ended.is_set()  # all of it happened during one step
        proceed.set()
        await asyncio.gather(*tasks)
        assert ended.is_set() and turns > engine.stats()["steps"] / 4

    computing, proceed, ended = (threading.Event() for _ in range(3))
    step = Batch.step

    def held(batch: Batch) -> None:
        computing.set()
        assert proceed.wait(60)
        step(batch)
        ended.set()

    with patch.object(Batch, "step", held):
        serving(tmp_path, tiny_gist_model(), work)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_no_more_tokens_than_were_allowed(tmp_path: Path, family: str) -> None:
    """Also where the model itself has no last position: a pass's mask grows by the square."""

    async def work(engine: TransformersEngine) -> None:
        assert engine.max_length == 64
        with pytest.raises(PromptError, match="more than the 64 allowed here; shorten the instr"):
            await engine.compress("x" * 64)
        with pytest.raises(PromptError, match="more than the 64 allowed here; shorten the prompt"):
            await engine.prepare(Prompt("", "x" * 64), None, Sampling(1))
        assert engine.store.entries() == []

    serving(tmp_path, tiny_gist_model(family), work, max_length=64)


def test_prompts_that_were_refused_are_not_kept(tmp_path: Path) -> None:
    async def work(engine: TransformersEngine) -> None:
        tracemalloc.start()
        try:
            for number in range(30):
                with pytest.raises(PromptError, match="more than the 64 allowed here"):
                    await engine.prepare(
                        Prompt("", f"{number} " + "x" * 100_000), None, Sampling(1)
                    )
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < 5_000_000  # the ids of one take 800 kB

    serving(tmp_path, tiny_gist_model(), work, max_length=64)


def test_an_engine_that_ended_says_so(tmp_path: Path) -> None:
    async def work(engine: TransformersEngine) -> None:
        assert engine.healthy
        await engine.stop()
        assert not engine.healthy

    serving(tmp_path, tiny_gist_model(), work)
