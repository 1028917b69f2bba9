"""An engine that runs while a test's coroutine does, and ends within the time."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from gistkit.gist import Gist
from gistkit.model import GistModel
from gistkit.serving.engine import Prompt, Sampling, StreamChunk
from gistkit.serving.transformers_engine import TransformersEngine
from gistkit.store import GistStore


def serving(
    folder: Path,
    model: GistModel,
    work: Callable[[TransformersEngine], Awaitable[None]],
    **options: Any,
) -> None:
    """Run `work` on an engine of its own."""

    async def run() -> None:
        with GistStore(folder / "gists") as store:
            engine = TransformersEngine(model, store, **options)
            await engine.start()
            try:
                await asyncio.wait_for(work(engine), 120)
            finally:
                await asyncio.wait_for(engine.stop(), 20)

    asyncio.run(run())


async def stream(
    engine: TransformersEngine,
    prompt: Prompt | str,
    sampling: Sampling,
    *,
    gist: Gist | None = None,
    client: str = "",
) -> AsyncGenerator[StreamChunk, None]:
    """The answer to a prompt, or to one input, as it is generated."""
    prompt = Prompt("", prompt) if isinstance(prompt, str) else prompt
    prepared = await engine.prepare(prompt, gist, sampling, client=client)
    async with aclosing(engine.stream(prepared)) as chunks:
        async for chunk in chunks:
            yield chunk


async def answer(
    engine: TransformersEngine, prompt: Prompt | str, sampling: Sampling, **options: Any
) -> list[StreamChunk]:
    """All chunks of an answer."""
    return [chunk async for chunk in stream(engine, prompt, sampling, **options)]


def texts(found: list[StreamChunk]) -> list[str]:
    """The answers of these chunks, by index."""
    answers = {chunk.index: "" for chunk in found}
    for chunk in found:
        answers[chunk.index] += chunk.text
    return [answers[index] for index in sorted(answers)]


async def until(what: Callable[[], bool]) -> None:
    """Wait for the worker's thread; a test's own time limit ends it."""
    while not what():
        await asyncio.sleep(0.005)
