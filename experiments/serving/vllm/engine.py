"""vLLM as the measurements use it: starting, asking, and what its counters say."""

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from experiments.serving.vllm.loads import BLOCK, BLOCKS
from gistkit.integrations.config import connector_config
from gistkit.model import GistModel

NUMBERS = itertools.count()
Prompt = tuple[list[int], dict[str, Any]]
"""Token ids, and what SamplingParams gets beside the usual."""


@dataclass(frozen=True)
class Asked:
    """One answered request: seconds to the first token and to the last, prompt tokens not read."""

    first: float
    last: float
    cached: int
    text: str


@asynccontextmanager
async def engine(folder: Path, model: GistModel, *, length: int) -> AsyncIterator[Any]:
    """An engine over `folder / "model"`, its gists in `folder / "store"`."""
    from vllm.config import KVTransferConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    made = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=f"{folder}/model",
            dtype="float32",
            max_model_len=length,
            block_size=BLOCK,
            num_gpu_blocks_override=BLOCKS,
            gpu_memory_utilization=0.05,
            enforce_eager=True,
            kv_transfer_config=KVTransferConfig(**connector_config(model, f"{folder}/store")),
        )
    )
    try:
        yield made
    finally:
        made.shutdown()


async def ask(engine: Any, prompt: Prompt, output: int, *, whole: bool = True) -> Asked:
    """One request, to its end; `whole`: all `output` tokens (raises AssertionError on failure)."""
    from vllm import SamplingParams

    ids, more = prompt
    sampling = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=whole, **more)
    begun, first, cached = time.perf_counter(), None, 0
    async for part in engine.generate({"prompt_token_ids": ids}, sampling, str(next(NUMBERS))):
        first = first or time.perf_counter()
        cached = part.num_cached_tokens or 0
    assert part.outputs[0].finish_reason in (("length",) if whole else ("length", "stop")), part
    assert first is not None
    return Asked(first - begun, time.perf_counter() - begun, cached, part.outputs[0].text)


async def ask_all(
    engine: Any, prompts: Iterable[Prompt], *, clients: int, output: int, whole: bool = True
) -> list[Asked]:
    """Every client takes the next request when it has its answer; answers in order."""
    waiting = iter(enumerate(prompts))
    answered: dict[int, Asked] = {}

    async def client() -> None:
        for number, prompt in waiting:
            answered[number] = await ask(engine, prompt, output, whole=whole)

    await asyncio.gather(*(client() for _ in range(clients)))
    return [answered[number] for number in range(len(answered))]


@dataclass
class Watched:
    """What vLLM's metrics said while something ran.

    Attributes:
        blocks: in use, looked at every 50 ms.
        queried, hit: prompt tokens looked for in the prefix cache, and found there.
    """

    blocks: list[float]
    queried: float = 0.0
    hit: float = 0.0


@asynccontextmanager
async def watched() -> AsyncIterator[Watched]:
    """Look at vLLM's metrics while the block runs."""
    seen = Watched([])
    queried, hit = _metric("vllm:prefix_cache_queries"), _metric("vllm:prefix_cache_hits")

    async def look() -> None:
        while True:
            seen.blocks.append(_metric("vllm:kv_cache_usage_perc") * BLOCKS)
            await asyncio.sleep(0.05)

    task = asyncio.create_task(look())
    try:
        yield seen
    finally:
        task.cancel()
        seen.queried = _metric("vllm:prefix_cache_queries") - queried
        seen.hit = _metric("vllm:prefix_cache_hits") - hit


def _metric(name: str) -> float:
    from prometheus_client import REGISTRY

    for family in REGISTRY.collect():
        for sample in family.samples:
            if sample.name in (name, f"{name}_total"):
                return float(sample.value)
    raise AssertionError(f"vLLM has no metric {name}")
