"""The engine on vLLM servers answers as the model does."""

import asyncio
from pathlib import Path

import pytest

from gistkit.errors import GistFileError, GistMismatchError, OptionError, PromptError
from gistkit.model import GistModel
from gistkit.serving.engine import Prompt, Sampling
from gistkit.serving.vllm.engine import VllmEngine
from gistkit.testing import tiny_gist_model
from tests.serving.engine_running import texts
from tests.serving.fake_vllm import LENGTH, FakeVllm
from tests.serving.vllm_running import ask, serving, stream

INSTRUCTIONS = ("Be brief.", "Everything costs nine coins. You are Nora.")


def test_gists_and_full_prompts_answer_as_generate_does(tmp_path: Path) -> None:
    async def work(engine: VllmEngine, model: GistModel, fakes: list[FakeVllm]) -> None:
        for instruction in INSTRUCTIONS:
            gist = model.compress(instruction)
            wanted = model.generate("abc", gist, max_new_tokens=20)
            for whole in (False, True):
                found = await ask(engine, "abc", Sampling(20), instruction=instruction, whole=whole)
                assert texts(found) == wanted
                assert sum(chunk.tokens for chunk in found) == 20
        full = stream(engine, Prompt("Be brief.", "abc"), Sampling(20))
        wanted = model.generate("abc", instructions="Be brief.", max_new_tokens=20)
        assert texts([chunk async for chunk in full]) == wanted
        assert engine.model.hf_model.device.type == "meta"  # the weights were never read

    serving(tmp_path, 1, work)


def test_vllm_compresses_what_is_new_and_once(tmp_path: Path) -> None:
    async def work(engine: VllmEngine, model: GistModel, fakes: list[FakeVllm]) -> None:
        before = len(fakes[0].asked)
        found = await asyncio.gather(*(engine.compress("Be brief.", 2) for _ in range(20)))
        assert len(fakes[0].asked) == before + 1
        ((id, gist), *others) = found
        assert all(other[0] == id for other in others)
        assert gist.model == model.fingerprint and gist.num_tokens == 2
        entry = engine.store.find(id)
        assert entry is not None and entry.keyed
        assert await engine.compress("Be brief.", 2) is not None
        assert len(fakes[0].asked) == before + 1
        assert len(engine.store.entries()) == 1  # handshakes leave nothing behind

    serving(tmp_path, 1, work)


def test_several_answers(tmp_path: Path) -> None:
    async def work(engine: VllmEngine, model: GistModel, fakes: list[FakeVllm]) -> None:
        wanted = model.generate("abc", max_new_tokens=9)
        before = len(fakes[0].asked)
        assert texts(await ask(engine, "abc", Sampling(9, n=3))) == wanted * 3
        assert len(fakes[0].asked) == before + 1  # greedy ones are all the same
        drawn = Sampling(9, n=3, temperature=1.0, seed=5)
        first, second = [texts(await ask(engine, "abc", drawn)) for _ in range(2)]
        assert first == second
        assert len(set(first)) == 3
        assert sorted(body["seed"] for body in fakes[0].asked[-3:]) == [5, 6, 7]

    serving(tmp_path, 1, work)


def test_a_stop_string_ends_an_answer_and_what_vllm_does_for_it(tmp_path: Path) -> None:
    async def work(engine: VllmEngine, model: GistModel, fakes: list[FakeVllm]) -> None:
        (full,) = model.generate("abc", max_new_tokens=300)
        stop = full[5:8]
        fakes[0].pause = 0.005
        found = await ask(engine, "abc", Sampling(300, stop=(stop,)))
        assert texts(found) == model.generate("abc", max_new_tokens=300, stop_strings=stop)
        assert found[-1].finish == "stop"
        assert sum(chunk.tokens for chunk in found) < 20
        while fakes[0].running:
            await asyncio.sleep(0.01)
        assert fakes[0].cancelled == 1

    serving(tmp_path, 1, work)


def test_logprobs(tmp_path: Path) -> None:
    async def work(engine: VllmEngine, model: GistModel, fakes: list[FakeVllm]) -> None:
        for top in (0, 2):
            found = await ask(engine, "abc", Sampling(5, logprobs=top))
            tokens = [token for chunk in found for token in chunk.logprobs]
            assert "".join(one.token for one in tokens).strip() == texts(found)[0]
            assert all(one.logprob <= 0 and len(one.top) == top for one in tokens)
            if top:
                assert all(one.top[0] == (one.token, one.logprob) for one in tokens)
                assert all(one.top[0][1] >= one.top[1][1] for one in tokens)

    serving(tmp_path, 1, work)


def test_what_cannot_be_is_refused_before_vllm_sees_it(tmp_path: Path) -> None:
    other = tiny_gist_model(seed=1).compress("Be brief.")

    async def work(engine: VllmEngine, model: GistModel, fakes: list[FakeVllm]) -> None:
        before = len(fakes[0].asked)
        assert engine.max_length == LENGTH
        with pytest.raises(PromptError, match=f"more than the {LENGTH} allowed"):
            await ask(engine, "x" * LENGTH, Sampling(6))
        with pytest.raises(PromptError, match="more than"):
            await engine.compress("x" * LENGTH)
        with pytest.raises(PromptError, match="empty"):
            await engine.compress(" ")
        with pytest.raises(PromptError, match="<GIST>"):
            await ask(engine, "<GIST>", Sampling(6))
        with pytest.raises(OptionError, match="trained for 1, 2, 4"):
            await engine.compress("Be brief.", 3)
        with pytest.raises(OptionError, match="weights"):
            await engine.measure("0" * 64, "Be brief.", [])
        with pytest.raises(GistMismatchError):
            await engine.prepare(Prompt("", "a"), other, Sampling(6))
        assert len(fakes[0].asked) == before

    serving(tmp_path, 1, work)


def test_a_gist_that_is_gone_meanwhile_is_the_clients_business(tmp_path: Path) -> None:
    async def work(engine: VllmEngine, model: GistModel, fakes: list[FakeVllm]) -> None:
        id, gist = await engine.compress("Be brief.")
        engine.store.remove(id)
        with pytest.raises(GistFileError, match="no longer in the store"):
            [c async for c in stream(engine, Prompt("", "a"), Sampling(3), gist=gist, gist_id=id)]
        assert texts(await ask(engine, "abc", Sampling(4)))

    serving(tmp_path, 2, work)


def test_the_size_of_a_prompt(tmp_path: Path) -> None:
    async def work(engine: VllmEngine, model: GistModel, fakes: list[FakeVllm]) -> None:
        _, gist = await engine.compress("Be brief.", 4)
        input = len(model.encoder.input("abc"))
        prepared = await engine.prepare(Prompt("", "abc"), gist, Sampling(10))
        assert (prepared.prompt_tokens, prepared.num_cached) == (4 + input, 4)
        assert prepared.kv_bytes == (4 + input + 10) * model.adapter.kv_bytes_per_token
        full = await engine.prepare(Prompt("Be brief.", "abc"), None, Sampling(10))
        assert full.prompt_tokens == len(model.encoder.prompt("Be brief.", "abc", 1))
        assert full.kv_bytes == (full.prompt_tokens + 10) * model.adapter.kv_bytes_per_token

    serving(tmp_path, 1, work)
