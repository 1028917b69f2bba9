"""Loads measured three ways, in turn, on one engine."""

import asyncio
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments.report import hardware, versions
from experiments.serving.vllm.engine import Asked, Prompt, Watched, ask, ask_all, engine, watched
from experiments.serving.vllm.loads import AXES, BLOCK, BLOCKS, QUICK, K, Load, along
from gistkit.files import write_text
from gistkit.gist import instruction_hash
from gistkit.model import GistModel
from gistkit.stats import median_ratio, quantile
from gistkit.store import GistKey, GistStore
from gistkit.testing import tiny_gist_model

SCHEMA_VERSION = 2
SIDES = ("no reuse", "prefix caching", "gist")
RESULTS = Path(__file__).parents[2] / "results"
TIMED = 12  # instructions whose compressing is timed


def run(axis: str | None, *, rounds: int, seed: int, quick: bool) -> None:
    """Measure the loads of an axis (None: all) and write one result for each."""
    if quick:
        print(json.dumps(asyncio.run(measure(QUICK, 2, seed)), indent=1))
        return
    for name in AXES if axis is None else (axis,):
        asyncio.run(measure(along(name), rounds, seed, write=_writer(name, rounds, seed)))


def _writer(axis: str, rounds: int, seed: int) -> Callable[[list[dict[str, Any]]], None]:
    """Writes the cases so far: what a time limit ends is not lost."""
    result = {
        "schema_version": SCHEMA_VERSION,
        "theme": "serving_vllm",
        "axis": axis,
        "seed": seed,
        "config": {"block": BLOCK, "blocks": BLOCKS, "k": K, "rounds": rounds},
        "versions": versions() | {"vllm": __import__("vllm").__version__},
        "hardware": hardware("cpu"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    file = RESULTS / f"serving_vllm_{axis}_cpu_{str(result['date'])[:10]}.json"

    def write(cases: list[dict[str, Any]]) -> None:
        write_text(file, json.dumps({**result, "cases": cases}, indent=1) + "\n")

    return write


async def measure(
    loads: tuple[Load, ...],
    rounds: int,
    seed: int,
    *,
    write: Callable[[list[dict[str, Any]]], None] | None = None,
) -> list[dict[str, Any]]:
    """All loads, one after the other, on one engine."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder / "model")
        async with engine(folder, model, length=2300) as made:
            for load in loads:
                found.append(await Case(made, model, folder / "store", load, seed).measure(rounds))
                if write is not None:
                    write(found)
    return found


def make_model(folder: Path) -> GistModel:
    """A Llama of random weights: 4 layers, 4 heads of 64 (2 of them for keys and values)."""
    made = tiny_gist_model(
        "llama", num_gist_tokens=[K], hidden_size=256, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, intermediate_size=1024, num_hidden_layers=4,
        max_position_embeddings=4096,
    )  # fmt: skip
    made.save_pretrained(folder)
    return GistModel.from_pretrained(folder)


class Case:
    """One load on one engine."""

    def __init__(self, engine: Any, model: GistModel, store: Path, load: Load, seed: int) -> None:
        self.engine, self.model, self.store, self.load = engine, model, store, load
        self.rng = random.Random(f"{seed} {load}")
        self.seed = seed
        self.texts = [self._letters(load.prompt - 20) for _ in range(load.distinct)]
        self.keys = [GistKey.of(model, text, K) for text in self.texts]
        self.order = [self.rng.randrange(load.distinct) for _ in range(load.requests)]
        self.inputs = [model.encoder.input(self._letters(load.input)) for _ in self.order]

    async def measure(self, rounds: int) -> dict[str, Any]:
        """Rounds of the three sides in a random order."""
        compressing = await self.compress()
        asked: dict[str, list[list[Asked]]] = {side: [] for side in SIDES}
        walls: dict[str, list[float]] = {side: [] for side in SIDES}
        seen: dict[str, list[Watched]] = {side: [] for side in SIDES}
        resident: list[int] = []
        for _ in range(rounds):
            for side in self.rng.sample(SIDES, len(SIDES)):
                await self.warm(side)
                prompts = [
                    self.prompt(side, which, ids)
                    for which, ids in zip(self.order, self.inputs, strict=True)
                ]
                async with watched() as watching:
                    begun = time.perf_counter()
                    answers = await ask_all(
                        self.engine, prompts, clients=self.load.clients, output=self.load.output
                    )
                    walls[side].append(time.perf_counter() - begun)
                asked[side].append(answers)
                seen[side].append(watching)
                if side == "prefix caching":
                    resident.append(await self.resident())
        print(f"{self.load} done", file=sys.stderr, flush=True)

        def ratio(top: str, bottom: str) -> dict[str, float]:
            return asdict(median_ratio(walls[top], walls[bottom], seed=self.seed))

        return {
            "load": asdict(self.load),
            "fits_the_pool": self.load.fits,
            "sides": {
                side: summary(asked[side], walls[side], seen[side], self.load) for side in SIDES
            },
            "throughput_gist_over_prefix_caching": ratio("prefix caching", "gist"),
            "throughput_gist_over_no_reuse": ratio("no reuse", "gist"),
            "compress_over_reading_the_prompt": compressing,
            "resident": self.per_gib(statistics.median(resident)),
            "walls_s": walls,
        }

    def prompt(self, side: str, which: int, ids: list[int]) -> Prompt:
        """What is asked of instruction `which`, with the input `ids`."""
        if side == "gist":
            gist = {"extra_args": {"kv_transfer_params": {"gist": self.keys[which].id}}}
            return [self.model.gist_id] * K + ids, gist
        skip = {"skip_reading_prefix_cache": True} if side == "no reuse" else {}
        return [*self.keys[which].tokens, *ids], skip

    async def warm(self, side: str) -> None:
        """Leave the pool as if every prompt had just been read once.

        Only the last that it can hold are read: what came before them would be gone again.
        """
        await self.engine.reset_prefix_cache()
        if side == "no reuse":
            return
        held = 2 * BLOCK * BLOCKS // (K if side == "gist" else self.load.prompt)
        first = self.model.encoder.input("first")
        prompts = [self.prompt(side, n, first) for n in range(self.load.distinct)]
        await ask_all(self.engine, prompts[-held:], clients=4, output=1)

    async def resident(self) -> int:
        """Prompts whose blocks are still there, from the last used on."""
        count = 0
        for which in dict.fromkeys([*reversed(self.order), *reversed(range(self.load.distinct))]):
            probe = self.prompt("prefix caching", which, self.model.encoder.input("probe"))
            found = await ask(self.engine, probe, 1)
            if found.cached < 0.9 * len(self.keys[which].tokens):
                break
            count += 1
        return count

    def per_gib(self, resident: float) -> dict[str, float]:
        """Prompts for each GiB: whole blocks of the pool, and gists in memory.

        A gist in use takes one block of the pool at most, with its input behind it.
        """
        config = self.model.hf_model.config
        token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
        with GistStore(self.store) as store:
            found = store.get(self.keys[0])
        assert found is not None
        gib = 2**30
        return {
            "full_prompts_in_the_pool": resident,
            "full_prompts_per_gib": gib / (math.ceil(self.load.prompt / BLOCK) * BLOCK * token),
            "gists_per_gib_in_memory": gib / found.num_bytes,
            "gists_per_gib_in_blocks": gib / (BLOCK * token),
        }

    async def compress(self) -> dict[str, float]:
        """Have vLLM make every gist; its time over that of reading the prompt, for the first."""
        made, read = [], []
        for number, key in enumerate(self.keys[:TIMED]):
            await self.engine.reset_prefix_cache()
            begun = time.perf_counter()
            await ask(self.engine, ([*key.tokens, self.model.gist_id], {}), 1)
            read.append(time.perf_counter() - begun)
            await self.engine.reset_prefix_cache()
            begun = time.perf_counter()
            await ask(self.engine, self.to_compress(number), 1)
            made.append(time.perf_counter() - begun)
        rest = [self.to_compress(number) for number in range(TIMED, len(self.keys))]
        await ask_all(self.engine, rest, clients=4, output=1)
        seconds = {"seconds": statistics.median(made), "reading_s": statistics.median(read)}
        return asdict(median_ratio(made, read, seed=self.seed)) | seconds

    def to_compress(self, number: int) -> Prompt:
        """The request that makes a gist."""
        key = self.keys[number]
        params = {
            "compress": key.to_json(),
            "instruction_sha256": instruction_hash(self.texts[number]),
        }
        ids = [*key.tokens, *[self.model.gist_id] * K]
        return ids, {"extra_args": {"kv_transfer_params": params}}

    def _letters(self, count: int) -> str:
        return "".join(self.rng.choices("abcdefghijklmnopqrstuvwxyz ", k=count))


def summary(
    rounds: list[list[Asked]], walls: list[float], seen: list[Watched], load: Load
) -> dict[str, float]:
    """Throughput as a median over the rounds; times to the first token over all requests."""
    firsts = sorted(asked.first for one in rounds for asked in one)
    queried = sum(one.queried for one in seen)
    return {
        "output_tokens_per_s": statistics.median(
            load.requests * load.output / wall for wall in walls
        ),
        "first_token_p50_s": quantile(firsts, 0.5),
        "first_token_p99_s": quantile(firsts, 0.99),
        "prompt_tokens_not_read": statistics.fmean(one.cached for row in rounds for one in row),
        "blocks_in_use_mean": statistics.fmean(n for one in seen for n in one.blocks),
        "blocks_in_use_peak": max(n for one in seen for n in one.blocks),
        "prefix_cache_hit_rate": sum(one.hit for one in seen) / queried if queried else 0.0,
    }
