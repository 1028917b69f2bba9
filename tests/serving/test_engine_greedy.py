"""Whatever else the engine is doing, a greedy answer is the one `GistModel.generate` gives."""

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from gistkit.gist import Gist
from gistkit.model import GistModel
from gistkit.serving.engine import Prompt, Sampling
from gistkit.serving.transformers_engine import TransformersEngine
from gistkit.testing import tiny_gist_model
from tests.serving.engine_running import answer, serving, stream, texts, until

INSTRUCTIONS = ["Be brief.", "Answer in capitals, and never twice.", "Sing of ships."]


@dataclass
class Asked:
    """One request, when it comes, and what is to be answered; None: it is given up on the way."""

    prompt: Prompt
    gist: Gist | None
    tokens: int
    after: float
    expected: str | None


async def said(engine: TransformersEngine, one: Asked) -> None:
    await asyncio.sleep(one.after)
    text, sampling = "", Sampling(one.tokens)
    chunks = stream(engine, one.prompt, sampling, gist=one.gist, client="me")
    async for chunk in chunks:
        text += chunk.text
        if one.expected is None and len(text) > 3:
            await chunks.aclose()
            return
    if one.expected is not None:
        assert text == one.expected


def mixed(model: GistModel, number: int, seed: int) -> list[Asked]:
    """Requests of all kinds: gists of several k, none, instructions in full; some give up."""
    chance = random.Random(seed)
    trained = model.config.num_gist_tokens
    asked = []
    for _ in range(number):
        instruction, kind = chance.choice(INSTRUCTIONS), chance.choice(["gist", "none", "full"])
        text = "x" * chance.choice([0, 1, 5, 5, 5, 40])
        tokens = chance.randrange(1, 40)
        gist = None
        if kind == "gist":
            gist = model.compress(instruction, num_gist_tokens=chance.choice(trained))
        full = instruction if kind == "full" else None
        answer = model.generate(text, gist, instructions=full, max_new_tokens=tokens)[0]
        gives_up = chance.random() < 0.2
        asked.append(
            Asked(
                Prompt(full or "", text),
                gist,
                tokens,
                chance.random() / 5,
                None if gives_up else answer,
            )
        )
    return asked


@pytest.mark.parametrize("family", ["llama", "gemma2", "t5"])
def test_answers_under_load_are_those_of_generate(tmp_path: Path, family: str) -> None:
    changes = {"sliding_window": 16} if family == "gemma2" else {}
    model = tiny_gist_model(family, **changes)
    asked = mixed(model, 40, seed=1)

    async def work(engine: TransformersEngine) -> None:
        await asyncio.gather(*(said(engine, one) for one in asked))
        await until(lambda: not engine.stats()["running"])  # what was given up, too
        stats = engine.stats()
        assert stats["waiting"] == stats["kv_bytes"] == 0
        assert stats["steps"] < stats["tokens"]  # several were answered together

    serving(tmp_path, model, work, max_rows=12)


def test_the_toy_model_answers_right_under_load(tmp_path: Path) -> None:
    model = GistModel.from_pretrained("toy")
    instructions = ["Everything costs nine coins. You are Nora.", "Reply in one word: yes."]
    inputs = ["Tom, one cake", "two apples please", "hello"]
    expected = {
        (i, x): model.generate(x, model.compress(i), max_new_tokens=24)[0]
        for i in instructions
        for x in inputs
    }

    async def work(engine: TransformersEngine) -> None:
        async def one(instruction: str, text: str) -> None:
            _, gist = await engine.compress(instruction)
            chunks = await answer(engine, text, Sampling(24), gist=gist)
            assert texts(chunks) == [expected[instruction, text]]

        await asyncio.gather(*(one(i, x) for i, x in expected for _ in range(4)))
        assert engine.store.stats()["compressed"] == len(instructions)

    serving(tmp_path, model, work)
