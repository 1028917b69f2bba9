"""Gists against prefix caching in the same vLLM: one engine, one model, one load, three ways.

    make vllm && .venv-vllm/bin/python -m benchmarks.serving_vllm

- `no reuse`: every request reads its whole prompt.
- `prefix caching`: vLLM keeps the blocks of prompts it has read, as long as there is room.
- `gist`: the prompt is k placeholders, their keys and values come from the store.

A pool of blocks too small for all full prompts is the case that gists are for; where all fit,
prefix caching has nothing to lose. Clients ask one request after another, instructions in a random
order that is the same for all three. Prompts are read once before the clock starts, so that neither
side pays for its first sight of them; what that costs is told apart. Random weights: what is
answered means nothing here, the tests compare answers.
"""

import argparse
import asyncio
import hashlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from benchmarks.protocol import median_ratio
from benchmarks.report import hardware, versions
from gisting.files import write_text
from gisting.integrations.start import connector_config
from gisting.model import GistModel
from gisting.store import GistKey
from gisting.testing import tiny_gist_model

SCHEMA_VERSION = 1
SIDES = ("no reuse", "prefix caching", "gist")
BLOCK, BLOCKS, K = 32, 512, 4
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Load:
    """What is asked.

    Attributes:
        prompt, input, output: tokens of each.
        distinct: instructions.
        clients: that ask at once.
        requests: in all, of one side of one round.
    """

    prompt: int
    distinct: int
    clients: int
    requests: int
    input: int = 32
    output: int = 32


LOADS = (
    Load(prompt=1024, distinct=64, clients=16, requests=96),
    Load(prompt=1024, distinct=8, clients=16, requests=96),
    Load(prompt=128, distinct=64, clients=16, requests=96),
    Load(prompt=1024, distinct=64, clients=1, requests=24),
    Load(prompt=2000, distinct=32, clients=16, requests=48),
)
QUICK = (Load(prompt=256, distinct=4, clients=2, requests=6, output=8),)


@dataclass(frozen=True)
class Asked:
    """One answered request: seconds to the first token and to the last, prompt tokens not read."""

    first: float
    last: float
    cached: int


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving_vllm", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a tiny load, 2 rounds, no files")
    options = parser.parse_args()
    rounds = 2 if options.quick else options.rounds
    cases = asyncio.run(measure(QUICK if options.quick else LOADS, rounds, options.seed))
    result = {
        "schema_version": SCHEMA_VERSION,
        "theme": "serving_vllm",
        "seed": options.seed,
        "config": {"block": BLOCK, "blocks": BLOCKS, "k": K, "rounds": rounds},
        "versions": versions() | {"vllm": __import__("vllm").__version__},
        "hardware": hardware("cpu"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cases": cases,
    }
    print(to_markdown(result))
    if not options.quick:
        name = RESULTS / f"serving_vllm_cpu_{result['date'][:10]}"
        write_text(name.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
        write_text(name.with_suffix(".md"), to_markdown(result))


async def measure(loads: tuple[Load, ...], rounds: int, seed: int) -> list[dict[str, Any]]:
    """All loads, one after the other, on one engine."""
    from vllm.config import KVTransferConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder) / "model")
        engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=f"{folder}/model",
                dtype="float32",
                max_model_len=2200,
                block_size=BLOCK,
                num_gpu_blocks_override=BLOCKS,
                gpu_memory_utilization=0.05,
                enforce_eager=True,
                kv_transfer_config=KVTransferConfig(**connector_config(model, f"{folder}/store")),
            )
        )
        try:
            return [await case(engine, model, load, rounds, seed) for load in loads]
        finally:
            engine.shutdown()


def make_model(folder: Path) -> GistModel:
    """A Llama of random weights: 4 layers, 4 heads of 64 (2 of them for keys and values)."""
    made = tiny_gist_model(
        "llama", num_gist_tokens=[K], hidden_size=256, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, intermediate_size=1024, num_hidden_layers=4,
        max_position_embeddings=4096,
    )  # fmt: skip
    made.save_pretrained(folder)
    return GistModel.from_pretrained(folder)


async def case(engine: Any, model: GistModel, load: Load, rounds: int, seed: int) -> dict[str, Any]:
    """One load: rounds of the three sides in a random order."""
    rng = random.Random(f"{seed} {load}")
    letters = "abcdefghijklmnopqrstuvwxyz "
    texts = ["".join(rng.choices(letters, k=load.prompt - 20)) for _ in range(load.distinct)]
    keys = [GistKey.of(model, text, K) for text in texts]
    inputs = ["".join(rng.choices(letters, k=load.input)) for _ in range(load.requests)]
    order = [rng.randrange(load.distinct) for _ in range(load.requests)]

    def request(side: str, which: int, text: str) -> tuple[list[int], dict[str, Any]]:
        ids = model.encoder.input(text)
        if side == "gist":
            gist = {"extra_args": {"kv_transfer_params": {"gist": keys[which].id}}}
            return [model.gist_id] * K + ids, gist
        skip = {"skip_reading_prefix_cache": True} if side == "no reuse" else {}
        return [*keys[which].tokens, *ids], skip

    first_sight = await compress_all(engine, model, texts, keys)
    found: dict[str, list[list[Asked]]] = {side: [] for side in SIDES}
    walls: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in rng.sample(SIDES, len(SIDES)):
            await engine.reset_prefix_cache()
            for which in range(load.distinct):
                await ask(engine, *request(side, which, "first"), 1)
            wanted = [request(side, which, text) for which, text in zip(order, inputs, strict=True)]
            begun = time.perf_counter()
            found[side].append(await ask_all(engine, wanted, load.clients, load.output))
            walls[side].append(time.perf_counter() - begun)
        print(f"{load}: a round done", file=sys.stderr, flush=True)
    sides = {side: summary(found[side], walls[side], load) for side in SIDES}

    def ratio(top: str, bottom: str) -> dict[str, float]:
        return asdict(median_ratio(walls[top], walls[bottom], seed=seed))

    return {
        "load": asdict(load),
        "fits_the_pool": load.distinct * load.prompt <= BLOCK * BLOCKS,
        "sides": sides,
        "throughput_gist_over_prefix_caching": ratio("prefix caching", "gist"),
        "throughput_gist_over_no_reuse": ratio("no reuse", "gist"),
        "compress_over_reading_the_prompt": first_sight,
        "walls_s": walls,
    }


async def compress_all(
    engine: Any, model: GistModel, texts: list[str], keys: list[GistKey]
) -> dict[str, float]:
    """Have vLLM make every gist; its time over that of reading the same prompts, by instruction."""
    made, read = [], []
    for text, key in zip(texts, keys, strict=True):
        await engine.reset_prefix_cache()
        begun = time.perf_counter()
        await ask(engine, [*key.tokens, model.gist_id], {}, 1)
        read.append(time.perf_counter() - begun)
        await engine.reset_prefix_cache()
        params = {
            "compress": key.to_json(),
            "instruction_sha256": hashlib.sha256(text.encode()).hexdigest(),
        }
        begun = time.perf_counter()
        ids = [*key.tokens, *[model.gist_id] * K]
        await ask(engine, ids, {"extra_args": {"kv_transfer_params": params}}, 1)
        made.append(time.perf_counter() - begun)
    return asdict(median_ratio(made, read, seed=0))


async def ask_all(
    engine: Any, wanted: list[tuple[list[int], dict[str, Any]]], clients: int, output: int
) -> list[Asked]:
    """Every client takes the next request when it has its answer."""
    waiting = iter(wanted)
    answered: list[Asked] = []

    async def client() -> None:
        for ids, more in waiting:
            answered.append(await ask(engine, ids, more, output))

    await asyncio.gather(*(client() for _ in range(clients)))
    return answered


NUMBERS = iter(range(10**9))


async def ask(engine: Any, ids: list[int], more: dict[str, Any], output: int) -> Asked:
    """One request, to its end (raises AssertionError where it fails)."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True, **more)
    begun, first, cached = time.perf_counter(), None, 0
    async for part in engine.generate({"prompt_token_ids": ids}, sampling, str(next(NUMBERS))):
        first = first or time.perf_counter()
        cached = part.num_cached_tokens or 0
    assert part.outputs[0].finish_reason == "length", part
    assert first is not None
    return Asked(first - begun, time.perf_counter() - begun, cached)


def summary(rounds: list[list[Asked]], walls: list[float], load: Load) -> dict[str, float]:
    """Medians over the rounds."""

    def quantile(one: list[Asked], share: float) -> float:
        times = sorted(asked.first for asked in one)
        return times[min(len(times) - 1, int(share * len(times)))]

    return {
        "output_tokens_per_s": statistics.median(
            load.requests * load.output / wall for wall in walls
        ),
        "first_token_p50_s": statistics.median(quantile(one, 0.5) for one in rounds),
        "first_token_p99_s": statistics.median(quantile(one, 0.99) for one in rounds),
        "prompt_tokens_not_read": statistics.median(
            statistics.fmean(asked.cached for asked in one) for one in rounds
        ),
    }


def to_markdown(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [f"# {result['theme']}", "", (__doc__ or "").strip(), ""]
    lines += [
        "| load | side | tokens/s | first token p50 | p99 | prompt tokens not read |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in result["cases"]:
        load = Load(**one["load"])
        name = f"{load.distinct} prompts of {load.prompt}, {load.clients} clients"
        lines += [
            f"| {name} | {side} | {facts['output_tokens_per_s']:.0f} "
            f"| {facts['first_token_p50_s'] * 1000:.0f} ms "
            f"| {facts['first_token_p99_s'] * 1000:.0f} ms "
            f"| {facts['prompt_tokens_not_read']:.0f} |"
            for side, facts in one["sides"].items()
        ]
    lines += [""]
    for one in result["cases"]:
        load = Load(**one["load"])
        lines += [
            f"- {load.distinct} prompts of {load.prompt} tokens, {load.clients} clients"
            f"{'' if one['fits_the_pool'] else ' (more than the pool holds)'}: throughput of gists "
            f"{_interval(one['throughput_gist_over_prefix_caching'])} times that of prefix caching,"
            f" {_interval(one['throughput_gist_over_no_reuse'])} times that of no reuse; "
            "compressing takes "
            f"{_interval(one['compress_over_reading_the_prompt'])} times as long as reading"
        ]
    config, made = result["config"], result["versions"]
    lines += [
        "",
        f"Pool: {config['blocks']} blocks of {config['block']} tokens; k = {config['k']}. "
        f"Median of paired ratios over {config['rounds']} rounds [95 % interval]. "
        f"{result['hardware']['processor']}; vllm {made['vllm']}, "
        f"torch {made['torch']}; {result['date']}.",
    ]
    return "\n".join(lines) + "\n"


def _interval(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


if __name__ == "__main__":
    main()
