"""An engine that runs while a test's coroutine does, and ends within the time."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from gistkit.model import GistModel
from gistkit.serving.engine import Delta, Prompt, Sampling
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


async def deltas(
    engine: TransformersEngine, text: str, sampling: Sampling, **more: Any
) -> list[Delta]:
    """All there is to say to one input."""
    gist = more.pop("gist", None)
    return [d async for d in engine.answer(Prompt("", text), gist, sampling, **more)]


def texts(found: list[Delta]) -> list[str]:
    """The answers of these deltas, by index."""
    answers = {d.index: "" for d in found}
    for delta in found:
        answers[delta.index] += delta.text
    return [answers[index] for index in sorted(answers)]


async def until(what: Callable[[], bool]) -> None:
    """Wait for the worker's thread; a test's own time limit ends it."""
    while not what():
        await asyncio.sleep(0.005)
