"""Every request is answered in its own way, whatever its neighbours ask for."""

import asyncio
from pathlib import Path

import pytest
import torch

from gistkit.errors import OptionError
from gistkit.serving.engine import Sampling
from gistkit.serving.transformers_engine import TransformersEngine
from gistkit.testing import tiny_gist_model
from tests.serving.engine_running import answer, serving, texts


def test_the_same_seed_gives_the_same_answer_whatever_else_is_in_the_batch(tmp_path: Path) -> None:
    model = tiny_gist_model()
    warm = Sampling(24, temperature=1.0, top_p=0.9, seed=7)

    async def work(engine: TransformersEngine) -> None:
        alone = texts(await answer(engine, "a", warm))
        others = [answer(engine, "x" * i, Sampling(20, temperature=1.0)) for i in range(9)]
        among, other, *_ = await asyncio.gather(
            answer(engine, "a", warm),
            answer(engine, "a", Sampling(24, temperature=1.0, top_p=0.9, seed=8)),
            *others,
        )
        assert texts(among) == alone
        assert texts(other) != alone

    serving(tmp_path, model, work)


@pytest.mark.parametrize("family", ["llama", "t5", "gemma2"])
def test_n_answers_are_those_of_n_rows(tmp_path: Path, family: str) -> None:
    model = tiny_gist_model(family)
    gist = model.compress("Be brief.")
    expected = model.generate("abc", gist, max_new_tokens=12)[0]

    async def work(engine: TransformersEngine) -> None:
        greedy = await answer(engine, "abc", Sampling(12, n=3), gist=gist)
        assert texts(greedy) == [expected] * 3
        warm = Sampling(12, temperature=1.0, seed=3, n=4)
        found = texts(await answer(engine, "abc", warm, gist=gist))
        assert len(set(found)) == 4
        assert found == texts(await answer(engine, "abc", warm, gist=gist))
        assert sum(d.tokens for d in greedy) == 3 * 12

    serving(tmp_path, model, work)


def test_almost_no_probability_or_warmth_is_greedy(tmp_path: Path) -> None:
    model = tiny_gist_model()
    expected = model.generate("abc", max_new_tokens=12)

    async def work(engine: TransformersEngine) -> None:
        for how in ({"top_p": 1e-6, "temperature": 1.0}, {"temperature": 1e-30}):
            assert texts(await answer(engine, "abc", Sampling(12, **how))) == expected

    serving(tmp_path, model, work)


def test_a_stop_string_ends_an_answer_and_is_not_part_of_it(tmp_path: Path) -> None:
    model = tiny_gist_model()
    whole = model.generate("abc", max_new_tokens=40)[0]
    stop = whole[10:13]
    expected = model.generate("abc", max_new_tokens=40, stop_strings=[stop, "never"])[0]

    async def work(engine: TransformersEngine) -> None:
        found = await answer(engine, "abc", Sampling(40, stop=(stop, "never")))
        assert texts(found) == [expected]
        assert [d.finish for d in found] == [None] * (len(found) - 1) + ["stop"]
        assert sum(d.tokens for d in found) == whole.index(stop) + len(stop)
        cut = await answer(engine, "abc", Sampling(5))
        assert texts(cut) == [whole[:5].strip()]
        assert cut[-1].finish == "length"

    serving(tmp_path, model, work)


def test_an_end_token_stops_and_counts(tmp_path: Path) -> None:
    model = tiny_gist_model()
    whole = model.generate("abc", max_new_tokens=20)[0]
    assert len(whole) == 20
    end = model.tokenizer.convert_tokens_to_ids(whole[7])
    model.hf_model.generation_config.eos_token_id = [2, end]
    expected = model.generate("abc", max_new_tokens=20)[0]

    async def work(engine: TransformersEngine) -> None:
        found = await answer(engine, "abc", Sampling(20, logprobs=0))
        first = whole.index(whole[7])
        assert texts(found) == [expected[:first].strip()]
        assert found[-1].finish == "stop"
        assert sum(d.tokens for d in found) == first + 1
        assert sum(len(d.logprobs) for d in found) == first

    serving(tmp_path, model, work)


def test_logprobs_are_those_of_the_model_at_temperature_one(tmp_path: Path) -> None:
    model = tiny_gist_model()
    gist = model.compress("Be brief.")

    async def work(engine: TransformersEngine) -> None:
        found, _ = await asyncio.gather(
            answer(engine, "abc", Sampling(6, temperature=0.1, seed=1, logprobs=2), gist=gist),
            answer(engine, "abcdef", Sampling(6, logprobs=5)),
        )
        said = [one for chunk in found for one in chunk.logprobs]
        assert "".join(one.token for one in said).strip() == texts(found)[0]
        ids, padding = model.pad([model.encoder.input("abc")])
        rows = model.adapter.begin(ids, padding, gist, gist_id=model.gist_id)
        for one in said:
            with torch.no_grad():
                logs = rows.logits.float().log_softmax(-1)[0]
                token = model.tokenizer.convert_tokens_to_ids(one.token.replace(" ", "Ġ"))
                assert one.logprob == pytest.approx(float(logs[token]), abs=1e-4)
                best = logs.topk(2)
                assert [v for _, v in one.top] == pytest.approx(best.values.tolist(), abs=1e-4)
                names = [model.tokenizer.decode([i]) for i in best.indices.tolist()]
                assert [name for name, _ in one.top] == names
                rows.step(torch.tensor([token]))

    serving(tmp_path, model, work)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(0), Sampling(1, n=0), Sampling(1, temperature=-1.0), Sampling(1, top_p=0.0)],
)
def test_a_sampling_that_means_nothing_is_refused(tmp_path: Path, sampling: Sampling) -> None:
    async def work(engine: TransformersEngine) -> None:
        with pytest.raises(OptionError):
            await answer(engine, "abc", sampling)

    serving(tmp_path, tiny_gist_model(), work)
