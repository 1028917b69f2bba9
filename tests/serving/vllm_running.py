"""Fake vLLM servers and an engine on them, while a test's coroutine runs."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from gistkit.model import GistModel
from gistkit.serving.engine import Prompt, Sampling, StreamChunk
from gistkit.serving.vllm.engine import Vllm
from gistkit.serving.vllm.tokenizer_model import hollow
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
) -> Vllm:
    """An engine without weights on these servers."""
    light = hollow(str(folder / "model"), model.fingerprint)
    return Vllm(light, store, [one.url for one in fakes], name="tiny", **options)


def serving(
    folder: Path,
    count: int,
    work: Callable[[Vllm, GistModel, list[FakeVllm]], Awaitable[None]],
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

    with servers(folder, model, count) as fakes, GistStore(folder / "store") as store:
        asyncio.run(run(fakes, store))


async def ask(
    engine: Vllm, text: str, sampling: Sampling, *, instruction: str = "", **more: Any
) -> list[StreamChunk]:
    """All there is to say to one input, from the instruction's gist where there is one."""
    id, gist = await engine.compress(instruction) if instruction else ("", None)
    whole = more.pop("whole", False)
    prepared = await engine.prepare(Prompt("", text), gist, sampling, gist_id=id, **more)
    return [chunk async for chunk in engine.stream(prepared, whole=whole)]
