"""Gists by way of the engine: compressed once, kept in the store, measured."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gistkit.errors import GistFileError, OptionError, PromptError
from gistkit.fidelity import Fidelity, fidelity_of, measure_fidelity
from gistkit.serving import transformers_engine
from gistkit.serving.engine import Prompt, Sampling
from gistkit.serving.transformers_engine import TransformersEngine
from gistkit.testing import tiny_gist_model
from tests.serving.engine_running import answer, serving, texts


def test_many_who_ask_at_once_get_one_compression(tmp_path: Path) -> None:
    model = tiny_gist_model()

    async def work(engine: TransformersEngine) -> None:
        found = await asyncio.gather(*(engine.compress(f"Be brief {i % 2}.") for i in range(40)))
        assert len({id for id, _ in found}) == 2
        assert engine.store.stats()["compressed"] == 2
        id, gist = found[0]
        assert engine.store.find(id) is not None
        expected = model.generate("abc", model.compress("Be brief 0."), max_new_tokens=9)
        assert texts(await answer(engine, "abc", Sampling(9), gist=gist)) == expected

    serving(tmp_path, model, work)


def test_one_who_gives_up_does_not_disturb_the_others(tmp_path: Path) -> None:
    async def work(engine: TransformersEngine) -> None:
        first = asyncio.create_task(engine.compress("Be brief."))
        second = asyncio.create_task(engine.compress("Be brief."))
        await asyncio.sleep(0)
        first.cancel()
        await second
        with pytest.raises(asyncio.CancelledError):
            await first

    serving(tmp_path, tiny_gist_model(), work)


def test_what_cannot_be_compressed_is_refused(tmp_path: Path) -> None:
    async def work(engine: TransformersEngine) -> None:
        with pytest.raises(PromptError, match="empty"):
            await engine.compress(" ")
        with pytest.raises(OptionError, match="trained for 1, 2, 4"):
            await engine.compress("Be brief.", 3)
        for _ in range(2):
            with pytest.raises(PromptError, match="more than the 512"):
                await engine.compress("x" * 600)

    serving(tmp_path, tiny_gist_model(), work)


def test_a_measured_gist_keeps_its_fidelity_and_its_id(tmp_path: Path) -> None:
    async def work(engine: TransformersEngine) -> None:
        id, _ = await engine.compress("Be brief.", 2)
        answers = asyncio.create_task(answer(engine, "abc", Sampling(30)))
        found = await engine.measure(id, "Be brief.", ["one", "two"])
        entry = engine.store.find(id)
        assert entry is not None and entry.keyed and entry.fidelity == found["score"]
        kept = fidelity_of((await engine.compress("Be brief.", 2))[1])
        assert kept is not None and kept.to_json() == found
        assert texts(await answers) == engine.model.generate("abc", max_new_tokens=30)

    serving(tmp_path, tiny_gist_model(), work)


def test_a_gist_deleted_while_it_is_measured_stays_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(engine: TransformersEngine) -> None:
        id, _ = await engine.compress("Be brief.", 2)

        def slow(*given: Any, **options: Any) -> Fidelity:
            found = measure_fidelity(*given, **options)
            assert engine.store.remove(id)
            return found

        monkeypatch.setattr(transformers_engine, "measure_fidelity", slow)
        with pytest.raises(GistFileError, match="no gist"):
            await engine.measure(id, "Be brief.", ["one"])
        assert engine.store.entries() == []

    serving(tmp_path, tiny_gist_model(), work)


def test_the_size_of_a_prompt(tmp_path: Path) -> None:
    model = tiny_gist_model()
    gist = model.compress("Be brief.", num_gist_tokens=4)

    async def work(engine: TransformersEngine) -> None:
        behind = await engine.prepare(Prompt("", "abc"), gist, Sampling(10))
        input = len(model.encoder.input("abc"))
        assert (behind.prompt_tokens, behind.num_cached) == (4 + input, 4)
        assert behind.kv_bytes == (4 + input + 10) * model.adapter.kv_bytes_per_token
        full = await engine.prepare(Prompt("Be brief.", "abc"), None, Sampling(10))
        assert full.num_cached == 0
        assert full.prompt_tokens == len(model.encoder.prompt("Be brief.", "abc", 1))

    serving(tmp_path, model, work)
