"""Fake vLLM servers and an engine on them, while a test's coroutine runs."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from gistkit.gist import Gist
from gistkit.model import GistModel
from gistkit.serving.engine import Prompt, Sampling, StreamChunk
from gistkit.serving.vllm import client
from gistkit.serving.vllm.engine import VllmEngine
from gistkit.serving.vllm.tokenizer_model import tokenizer_model
from gistkit.store import GistStore
from gistkit.testing import tiny_gist_model
from tests.serving.fake_vllm import FakeVllm


def saved(folder: Path) -> GistModel:
    """A tiny model, which also lies in `folder / "model"`."""
    model = tiny_gist_model()
    model.save_pretrained(folder / "model")
    return GistModel.from_pretrained(folder / "model")


@contextmanager
def servers(folder: Path, model: GistModel, count: int, **options: Any) -> Iterator[list[FakeVllm]]:
    """So many fake servers on `folder / "store"`."""
    with ExitStack() as stack:
        found = [FakeVllm(model, folder / "store", **options) for _ in range(count)]
        for one in found:
            stack.callback(one.close)
        yield found


def engine_on(
    folder: Path, model: GistModel, store: GistStore, fakes: list[FakeVllm], **options: Any
) -> VllmEngine:
    """An engine without weights on these servers."""
    light = tokenizer_model(str(folder / "model"), model.fingerprint)
    return VllmEngine(light, store, [one.url for one in fakes], name="tiny", **options)


def serving(
    folder: Path,
    count: int,
    work: Callable[[VllmEngine, GistModel, list[FakeVllm]], Awaitable[None]],
    **options: Any,
) -> None:
    """Run `work` on an engine with `count` servers."""
    model = saved(folder)

    async def run(fakes: list[FakeVllm], store: GistStore) -> None:
        engine = engine_on(folder, model, store, fakes, **options)
        await engine.start()
        try:
            await asyncio.wait_for(work(engine, model, fakes), 60)
        finally:
            await asyncio.wait_for(engine.stop(), 20)

    with (
        patch.object(client, "CONNECT", 60.0),  # on a busy machine a fake server accepts late
        servers(folder, model, count) as fakes,
        GistStore(folder / "store") as store,
    ):
        asyncio.run(run(fakes, store))


async def stream(
    engine: VllmEngine,
    prompt: Prompt,
    sampling: Sampling,
    *,
    gist: Gist | None = None,
    gist_id: str = "",
    whole: bool = False,
) -> AsyncGenerator[StreamChunk, None]:
    """The answer to a prompt, as it comes."""
    prepared = await engine.prepare(prompt, gist, sampling, gist_id=gist_id)
    async with aclosing(engine.stream(prepared, whole=whole)) as chunks:
        async for chunk in chunks:
            yield chunk


async def ask(
    engine: VllmEngine,
    text: str,
    sampling: Sampling,
    *,
    instruction: str = "",
    whole: bool = False,
) -> list[StreamChunk]:
    """All chunks of the answer to one input, from the gist of the instruction if there is one."""
    id, gist = await engine.compress(instruction) if instruction else ("", None)
    chunks = stream(engine, Prompt("", text), sampling, gist=gist, gist_id=id, whole=whole)
    return [chunk async for chunk in chunks]
