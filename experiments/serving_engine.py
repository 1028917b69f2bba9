"""The serving engine under N clients against `GistModel.generate`, one request after the other.

The same requests on both sides: different gists, one answer each, greedy; the answers are compared
with those of `generate`. A client asks for its next answer when it has read the last one. The
toy model answers its own tasks (short answers, each ends by itself); the published shape
answers with as many tokens as it may. Under the most clients the engine also answers from cached
prompts, and from full prompts, which it reads again for every request.
"""

import asyncio
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import median
from typing import Any

from experiments.report import Case, Comparison, Options
from experiments.subject import PUBLISHED, TINY, make_inputs, make_instructions, make_model
from gistkit import Gist, GistModel, Prefix
from gistkit.baselines import CACHED, FULL, GIST, answer
from gistkit.data.tasks import FAMILIES
from gistkit.serving.engine import Prompt, Sampling
from gistkit.serving.transformers_engine import TransformersEngine
from gistkit.store import GistStore
from gistkit.timing import Timing, interleave, timed

ROUNDS = 7
SIZES: Mapping[str, Any] = {
    "clients": (1, 8, 64),
    "requests": 64,
    "gists": 16,
    "shape": PUBLISHED,
    "instruction_tokens": 256,
    "input_tokens": 16,
    "new_tokens": 32,
}
QUICK: Mapping[str, Any] = {
    "clients": (1, 4),
    "requests": 8,
    "gists": 2,
    "shape": TINY,
    "instruction_tokens": 24,
    "input_tokens": 8,
    "new_tokens": 6,
}
ALONE = "generate"


@dataclass(frozen=True, slots=True)
class Load:
    """The requests of a load.

    Attributes:
        instructions, inputs: one of each a request.
        gists, caches: of each instruction once; the caches are of the full prompts.
        tokens: of an answer, at most.
    """

    model: GistModel
    instructions: Sequence[str]
    inputs: Sequence[str]
    gists: Mapping[str, Gist]
    caches: Mapping[str, Prefix]
    tokens: int

    @classmethod
    def make(cls, model: GistModel, pairs: Sequence[tuple[str, str]], tokens: int) -> "Load":
        instructions, inputs = zip(*pairs, strict=True)
        different = dict.fromkeys(instructions)
        gists = {text: model.compress(text) for text in different}
        caches = {text: model.cache_prompt(text) for text in different}
        return cls(model, instructions, inputs, gists, caches, tokens)

    def generate(self, mode: str = GIST) -> list[str]:
        """All answers, one after the other."""
        return [
            answer(
                self.model,
                mode,
                instruction,
                text,
                self._prefix(mode, instruction),
                max_new_tokens=self.tokens,
            )[0]
            for instruction, text in zip(self.instructions, self.inputs, strict=True)
        ]

    async def serve(self, engine: TransformersEngine, clients: int, mode: str = GIST) -> list[str]:
        """All answers, from as many clients at once."""
        answers = [""] * len(self.inputs)

        async def client(own: range) -> None:
            for number in own:
                instruction = self.instructions[number]
                prompt = Prompt(instruction, self.inputs[number])
                prefix: Any = self._prefix(mode, instruction)  # the engine takes any prefix
                how = Sampling(self.tokens)
                name = str(own.start)
                prepared = await engine.prepare(prompt, prefix, how, client=name)
                chunks = engine.stream(prepared)
                answers[number] = "".join([chunk.text async for chunk in chunks])

        owns = [range(start, len(answers), clients) for start in range(clients)]
        await asyncio.gather(*(client(own) for own in owns))
        return answers

    def _prefix(self, mode: str, instruction: str) -> Prefix | None:
        kept = {GIST: self.gists, CACHED: self.caches}
        return kept[mode][instruction] if mode in kept else None


def run(sizes: Mapping[str, Any], options: Options) -> Iterator[Case]:
    """One case a model."""
    loads = {
        "toy model": _tasks(sizes["requests"], sizes["gists"], options),
        "random model": _texts(sizes, options),
    }
    for name, load in loads.items():
        with (
            asyncio.Runner() as runner,
            tempfile.TemporaryDirectory() as folder,
            GistStore(folder) as store,
        ):
            engine = TransformersEngine(load.model, store, max_rows=max(sizes["clients"]))
            runner.run(engine.start())
            yield _case(name, load, engine, runner, sizes["clients"], options)
            runner.run(engine.stop())


def _case(
    name: str,
    load: Load,
    engine: TransformersEngine,
    runner: asyncio.Runner,
    clients: Sequence[int],
    options: Options,
) -> Case:
    most = max(clients)
    modes = {_side(number): (number, GIST) for number in clients}
    modes |= {f"{_side(most)}, {mode}": (most, mode) for mode in (CACHED, FULL)}
    expected = {mode: load.generate(mode) for mode in (GIST, CACHED, FULL)}
    sides: dict[str, Callable[[], Timing]] = {ALONE: timed(load.generate, device=options.device)}
    for side, (number, mode) in modes.items():
        assert runner.run(load.serve(engine, number, mode)) == expected[mode], "answers differ"

        def served(number: int = number, mode: str = mode) -> None:
            runner.run(load.serve(engine, number, mode))

        sides[side] = timed(served, device=options.device)
    samples = interleave(sides, rounds=options.rounds, warmup=1, seed=options.seed)
    requests = len(load.inputs)
    return Case(
        name=name,
        base=ALONE,
        samples=samples,
        comparisons=[
            Comparison(_side(most), ALONE, 0.333),
            Comparison(_side(most), f"{_side(most)}, {CACHED}"),
            Comparison(_side(most), f"{_side(most)}, {FULL}"),
        ],
        facts={
            side: {"requests / s": requests / median(t.wall for t in timings)}
            for side, timings in samples.items()
        },
        checks={"engine = generate": f"{requests} answers equal, on every side"},
    )


def _side(clients: int) -> str:
    return f"engine, {clients} client{'s' if clients > 1 else ''}"


def _tasks(requests: int, gists: int, options: Options) -> Load:
    """What the toy model was trained for."""
    model = GistModel.from_pretrained("toy", device=options.device)
    rng = Random(options.seed)
    pairs = []
    for number in range(gists):
        family = FAMILIES[("reply", "notice", "rewrite")[number % 3]]
        level = rng.choice((1, 2, 3))
        instruction = family.instruction(family.facts(level, rng), rng)
        own = range(number, requests, gists)
        pairs += [(instruction, family.input(level, rng)) for _ in own]
    rng.shuffle(pairs)
    return Load.make(model, pairs, tokens=64)


def _texts(sizes: Mapping[str, Any], options: Options) -> Load:
    """Random words; every answer is as long as it may be."""
    model = make_model(sizes["shape"], seed=options.seed, device=options.device)
    requests, gists = sizes["requests"], sizes["gists"]
    lengths = [sizes["instruction_tokens"]] * gists
    instructions = make_instructions(model, lengths, seed=options.seed)
    inputs = make_inputs(model, [sizes["input_tokens"]] * requests, seed=options.seed)
    pairs = [(instructions[n % gists], text) for n, text in enumerate(inputs)]
    return Load.make(model, pairs, sizes["new_tokens"])
