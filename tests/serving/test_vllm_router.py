"""Several vLLM servers: which one answers, and what happens to answers when one fails."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gistkit.errors import BusyError, UnavailableError
from gistkit.model import GistModel
from gistkit.serving.engine import Prompt, Sampling
from gistkit.serving.vllm.engine import VllmEngine
from gistkit.store import GistStore
from tests.serving.engine_running import texts
from tests.serving.fake_vllm import FakeVllm
from tests.serving.vllm_running import ask, engine_on, saved, serving, stream

Fakes = list[FakeVllm]
WHOLE = {number for number in range(80) if number % 4 < 2}
"""Requests that are not streamed."""


async def until(what: Callable[[], bool], seconds: float = 30) -> None:
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit
        await asyncio.sleep(0.01)


def compressed(fake: FakeVllm) -> int:
    """Instructions, those of handshakes too."""
    return sum("compress" in (body.get("kv_transfer_params") or {}) for body in fake.asked)


def answered(fake: FakeVllm) -> int:
    """All other requests."""
    return len(fake.asked) - compressed(fake)


async def all_at_once(fakes: Fakes, work: list[Awaitable[Any]]) -> list[Any]:
    """Results of requests, none of which is answered before the last has arrived."""
    for fake in fakes:
        fake.fault = "held"
    tasks = [asyncio.ensure_future(request) for request in work]
    await until(lambda: sum(fake.running for fake in fakes) == len(work))
    for fake in fakes:
        fake.fault = ""
    return await asyncio.gather(*tasks)


def test_a_server_that_has_the_gist_is_preferred_unless_it_is_busy(tmp_path: Path) -> None:
    async def work(engine: VllmEngine, model: GistModel, fakes: Fakes) -> None:
        for name in ("Be brief.", "Be polite."):
            for _ in range(5):
                await until(lambda: engine.stats()["running"] == 0)
                await ask(engine, "abc", Sampling(2), instruction=name)
        assert sorted(map(answered, fakes)) == [5, 5]  # each has one gist, and is asked for it
        many = [ask(engine, "abc", Sampling(20), instruction="Be brief.") for _ in range(24)]
        found = await all_at_once(fakes, many)
        wanted = model.generate("abc", model.compress("Be brief."), max_new_tokens=20)
        assert all(texts(one) == wanted for one in found)
        assert min(map(answered, fakes)) > 5 + 4  # too much for the one alone

    serving(tmp_path, 2, work)


def test_the_least_loaded_is_asked(tmp_path: Path) -> None:
    async def work(engine: VllmEngine, model: GistModel, fakes: Fakes) -> None:
        await all_at_once(fakes, [ask(engine, "abc", Sampling(9)) for _ in range(12)])
        assert [answered(fake) for fake in fakes] == [4, 4, 4]

    serving(tmp_path, 3, work)


@pytest.mark.parametrize("fault", ["drop", "500", "503", "event"])
def test_what_fails_before_the_first_token_is_retried_elsewhere(fault: str, tmp_path: Path) -> None:
    async def work(engine: VllmEngine, model: GistModel, fakes: Fakes) -> None:
        wanted = model.generate("abc", model.compress("Be brief."), max_new_tokens=20)
        fakes[0].fault = fault
        many = [ask(engine, "abc", Sampling(20), instruction="Be brief.") for _ in range(30)]
        assert all(texts(one) == wanted for one in await asyncio.gather(*many))
        assert engine.stats()["retried"] > 0
        fakes[1].fault = fault  # none is left
        with pytest.raises(UnavailableError, match="failed at this request; try again"):
            await ask(engine, "abc", Sampling(20), instruction="Be brief.")

    serving(tmp_path, 2, work)


def test_what_fails_half_way_ends_with_an_error_or_is_retried_unseen(tmp_path: Path) -> None:
    async def work(engine: VllmEngine, model: GistModel, fakes: Fakes) -> None:
        wanted = model.generate("abc", max_new_tokens=60)
        fakes[0].fault = "halfway"
        seen = 0
        for _ in range(2):  # one of them goes there
            chunks = stream(engine, Prompt("", "abc"), Sampling(60))
            try:
                assert texts([chunk async for chunk in chunks]) == wanted
            except UnavailableError as error:
                assert "in the middle of this answer" in str(error)
                seen += 1
            await until(lambda: engine.stats()["endpoints_up"] == 2)
        assert seen == 1
        many = [ask(engine, "abc", Sampling(60), whole=True) for _ in range(10)]
        assert all(texts(one) == wanted for one in await asyncio.gather(*many))
        assert engine.stats()["retried"] > 0

    serving(tmp_path, 2, work)


def test_one_is_killed_under_load_and_comes_back(tmp_path: Path) -> None:
    """No wrong answer; nothing is lost that was not streamed, the rest ends with an error."""

    async def work(engine: VllmEngine, model: GistModel, fakes: Fakes) -> None:
        names = [f"Be brief {n}." for n in range(3)]
        wanted = {n: model.generate("abc", model.compress(n), max_new_tokens=24) for n in names}
        for fake in fakes:
            fake.pause = 0.05
        begun: set[int] = set()
        ended: set[int] = set()
        broken: set[int] = set()

        async def one(number: int) -> None:
            name = names[number % len(names)]
            id, gist = await engine.compress(name)
            text = ""
            try:
                prompt, whole = Prompt("", "abc"), number in WHOLE
                chunks = stream(engine, prompt, Sampling(24), gist=gist, gist_id=id, whole=whole)
                async for chunk in chunks:
                    if chunk.tokens:
                        begun.add(number)
                    text += chunk.text
            except UnavailableError as error:
                assert "in the middle of this answer; try again" in str(error)
                broken.add(number)
                assert wanted[name][0].startswith(text.strip())
            else:
                assert [text] == wanted[name]
            ended.add(number)

        tasks = [asyncio.create_task(one(number)) for number in range(80)]
        await until(lambda: len(begun - ended - WHOLE) > 12)
        fakes[0].kill()
        await asyncio.gather(*tasks)
        assert broken <= begun
        assert not broken & WHOLE
        assert broken  # otherwise it was killed too late
        assert engine.stats()["endpoints_up"] == 1
        before = answered(fakes[0])
        fakes[0].start()
        await until(lambda: engine.stats()["endpoints_up"] == 2)
        await asyncio.gather(*(one(number) for number in range(40)))
        assert answered(fakes[0]) > before

    serving(tmp_path, 2, work)


def test_all_servers_are_down_for_a_while(tmp_path: Path) -> None:
    async def work(engine: VllmEngine, model: GistModel, fakes: Fakes) -> None:
        assert engine.healthy
        fakes[0].kill()
        await until(lambda: not engine.healthy)
        with pytest.raises(UnavailableError):
            await ask(engine, "abc", Sampling(3))
        with pytest.raises(UnavailableError, match="no vLLM server is up"):
            await ask(engine, "abc", Sampling(3))
        fakes[0].start()
        await until(lambda: engine.healthy)
        assert texts(await ask(engine, "abc", Sampling(3)))

    serving(tmp_path, 1, work)


def test_one_that_is_silent_and_then_gone_loses_its_requests_to_the_other(tmp_path: Path) -> None:
    async def work(engine: VllmEngine, model: GistModel, fakes: Fakes) -> None:
        fakes[0].fault = "silent"
        wanted = model.generate("abc", max_new_tokens=5)
        many = [asyncio.create_task(ask(engine, "abc", Sampling(5))) for _ in range(6)]
        await until(lambda: fakes[0].running == 3)
        fakes[0].sick = True  # its engine died; the health check says so
        assert all(texts(one) == wanted for one in await asyncio.gather(*many))
        assert engine.stats()["endpoints_up"] == 1

    serving(tmp_path, 2, work)


@pytest.mark.parametrize(
    "how", ["other weights", "other words", "no connector", "another store", "another key"]
)
def test_a_server_that_is_not_what_it_should_be_gets_nothing(how: str, tmp_path: Path) -> None:
    async def work(engine: VllmEngine, model: GistModel, fakes: Fakes) -> None:
        fakes[1].kill()
        if how == "other weights":
            fakes[1].names = [f"gistkit-{'0' * 64}-{'0' * 64}"]
        elif how == "other words":  # the same weights, and another tokenizer or template
            fakes[1].names = [f"gistkit-{model.fingerprint}-{'0' * 64}"]
        elif how == "no connector":
            fakes[1].fault = "foreign"
        elif how == "another store":
            fakes[1].use_store(tmp_path / "elsewhere")
        else:
            fakes[1].key = "secret"
        await until(lambda: engine.stats()["endpoints_up"] == 1)
        before = len(fakes[1].asked)
        fakes[1].start()
        await asyncio.sleep(1.5)
        assert engine.stats()["endpoints_up"] == 1
        await asyncio.gather(*(ask(engine, "abc", Sampling(3)) for _ in range(9)))
        assert answered(fakes[1]) == 0 and len(fakes[1].asked) <= before + 4

    serving(tmp_path, 2, work)


def test_check_says_what_is_wrong(tmp_path: Path) -> None:
    async def work(engine: VllmEngine, model: GistModel, fakes: Fakes) -> None:
        await engine.stop()
        fakes[0].names, fakes[1].fault = [], "foreign"
        with pytest.raises(UnavailableError, match=r"not say what it runs.*stored no gist"):
            await engine.check()

    serving(tmp_path, 2, work)


def test_weights_here_compress_and_measure(tmp_path: Path) -> None:
    """Where vLLM cannot compress: a server that only reads gists will do."""

    async def work(engine: VllmEngine, model: GistModel, fakes: Fakes) -> None:
        async with whole(engine, model, fakes) as found:
            before = [compressed(fake) for fake in fakes]
            id, _ = await found.compress("Be brief.")
            measured = await found.measure(id, "Be brief.", ["one"])
            assert [compressed(fake) for fake in fakes] == before
            entry = found.store.find(id)
            assert entry is not None and entry.fidelity == measured["score"]
            wanted = model.generate("abc", model.compress("Be brief."), max_new_tokens=5)
            assert texts(await ask(found, "abc", Sampling(5), instruction="Be brief.")) == wanted
            assert found.stats()["endpoints_up"] == 1  # the other has no connector

    class whole:
        def __init__(self, engine: VllmEngine, model: GistModel, fakes: Fakes) -> None:
            fakes[1].fault = "foreign"
            urls = [fake.url for fake in fakes]
            self.engine = VllmEngine(
                model, engine.store, urls, name="tiny", compressor="transformers"
            )

        async def __aenter__(self) -> VllmEngine:
            await self.engine.start()
            return self.engine

        async def __aexit__(self, *_: object) -> None:
            await self.engine.stop()

    serving(tmp_path, 2, work)


def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    async def work(engine: VllmEngine, model: GistModel, fakes: Fakes) -> None:
        fakes[0].pause = 0.1
        first = stream(engine, Prompt("", "abc"), Sampling(300))
        await anext(first)
        waiting = [asyncio.create_task(ask(engine, "x", Sampling(3))) for _ in range(2)]
        await until(lambda: engine.stats()["waiting"] == 2)
        with pytest.raises(BusyError, match="2 requests are waiting") as busy:
            await ask(engine, "y", Sampling(3))
        assert 1 <= busy.value.retry_after <= 60
        waiting[0].cancel()
        await until(lambda: engine.stats()["waiting"] == 1)
        await first.aclose()
        await waiting[1]
        await until(lambda: engine.stats()["running"] == engine.stats()["waiting"] == 0)

    serving(tmp_path, 1, work, max_rows=1, max_waiting=2)


def test_leaving_early_is_told_to_vllm(tmp_path: Path) -> None:
    async def work(engine: VllmEngine, model: GistModel, fakes: Fakes) -> None:
        fakes[0].pause = 0.02
        chunks = stream(engine, Prompt("", "abc"), Sampling(200))
        await anext(chunks)
        await chunks.aclose()
        await until(lambda: fakes[0].cancelled == 1)
        task = asyncio.create_task(ask(engine, "abc", Sampling(200), whole=True))
        await until(lambda: fakes[0].running == 1)
        task.cancel()
        await until(lambda: fakes[0].cancelled == 2 and engine.stats()["running"] == 0)

    serving(tmp_path, 1, work)


def test_stopping_ends_what_runs_and_what_waits(tmp_path: Path) -> None:
    async def work(engine: VllmEngine, model: GistModel, fakes: Fakes) -> None:
        fakes[0].pause = 0.05
        tasks = [asyncio.create_task(ask(engine, "abc", Sampling(90))) for _ in range(3)]
        await until(lambda: engine.stats()["waiting"] == 2)
        await engine.stop()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, UnavailableError) for one in found)
        with pytest.raises(UnavailableError):
            await ask(engine, "abc", Sampling(3))
        with pytest.raises(UnavailableError):
            await ask(engine, "abc", Sampling(3), instruction="Be quick.")

    serving(tmp_path, 1, work, max_rows=1)


def test_machines_that_share_a_remote_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with a cache of its own, so that a gist is really fetched from the remote place."""
    model, place = saved(tmp_path), f"file://{tmp_path}/bucket"
    with ExitStack() as stack:
        fakes = []
        for machine in ("one", "two"):
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
            fakes.append(FakeVllm(model, place))
            stack.callback(fakes[-1].close)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "gateway"))
        store = stack.enter_context(GistStore(place))
        engine = engine_on(tmp_path, model, store, fakes)

        async def run() -> None:
            await engine.start()
            try:
                wanted = model.generate("abc", model.compress("Be brief."), max_new_tokens=9)
                for fake in fakes:
                    fake.pause = 0.02
                many = [ask(engine, "abc", Sampling(9), instruction="Be brief.") for _ in range(24)]
                assert all(texts(one) == wanted for one in await asyncio.gather(*many))
                assert min(map(answered, fakes)) > 0
                assert sum(compressed(fake) for fake in fakes) == 2 + 1  # handshakes, and one
            finally:
                await engine.stop()

        asyncio.run(run())
