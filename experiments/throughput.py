"""Answering a batch whose rows all have their own 512-token instruction, and the KV bytes it takes.

`whole answer` is the time of `GistModel.generate` from text to text, caches built beforehand;
`decode` is its part from the first token to the last. The full prompt is read again each time.
Bytes: what is kept between requests, and what is in use at the last token.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from experiments.report import Case, Comparison, Options
from experiments.subject import (
    PUBLISHED,
    TINY,
    Request,
    StepClock,
    make_inputs,
    make_instructions,
    make_model,
)
from gistkit.baselines import CACHED, FULL, GIST, MODES, NONE
from gistkit.timing import Timing, interleave, timed

ROUNDS = 11
SIZES: Mapping[str, Any] = {
    "shape": PUBLISHED,
    "instruction_tokens": 512,
    "input_tokens": 16,
    "new_tokens": 32,
    "batches": (8, 32),
}
QUICK: Mapping[str, Any] = {
    "shape": TINY,
    "instruction_tokens": 48,
    "input_tokens": 8,
    "new_tokens": 6,
    "batches": (2,),
}


def run(sizes: Mapping[str, Any], options: Options) -> Iterator[Case]:
    """Two cases a batch size, from the same runs."""
    model = make_model(sizes["shape"], seed=options.seed, device=options.device)
    for batch in sizes["batches"]:
        request = Request.make(
            model,
            make_instructions(model, [sizes["instruction_tokens"]] * batch, seed=options.seed),
            make_inputs(model, [sizes["input_tokens"]] * batch, seed=options.seed),
        )
        new = sizes["new_tokens"]
        checks = request.check(new)
        decode: dict[str, list[Timing]] = {mode: [] for mode in MODES}
        whole = interleave(
            {mode: answering(request, mode, new, decode[mode], options.device) for mode in MODES},
            rounds=options.rounds,
            warmup=1,
            seed=options.seed + batch,
        )
        decode = {mode: timings[1:] for mode, timings in decode.items()}  # the warm-up
        memory = kv_bytes(request, sizes["input_tokens"] + new)
        yield Case(
            f"batch {batch}, whole answer",
            CACHED,
            whole,
            comparisons=[Comparison(GIST, FULL), Comparison(GIST, NONE)],
            facts=facts(whole, batch * new, memory),
            checks=checks,
        )
        yield Case(
            f"batch {batch}, decode",
            CACHED,
            decode,
            comparisons=[Comparison(GIST, NONE)],
            facts=facts(decode, batch * (new - 1), memory),
        )


def answering(
    request: Request, mode: str, tokens: int, decode: list[Timing], device: str
) -> Callable[[], Timing]:
    """Times the whole answer, and notes in `decode` the part after the first token."""

    def work() -> None:
        clock = StepClock()
        request.answer(mode, tokens, clock)
        decode.append(clock.decode())

    return timed(work, device=device)


def kv_bytes(request: Request, own_tokens: int) -> dict[str, dict[str, float]]:
    """Bytes kept between requests, and bytes in use when each row has `own_tokens` of its own."""
    kept = request.kept_bytes()
    per_token = request.gist.num_bytes // request.gist.num_tokens
    read = {
        FULL: request.cache.num_tokens,
        CACHED: request.cache.num_tokens,
        GIST: request.gist.num_tokens,
        NONE: 0,
    }
    return {
        mode: {"kept bytes": kept[mode], "KV bytes in use": per_token * (read[mode] + own_tokens)}
        for mode in MODES
    }


def facts(
    samples: Mapping[str, Sequence[Timing]], tokens: int, memory: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Tokens a second (of CPU time, which a busy machine disturbs least) beside the bytes."""
    return {
        mode: {"tokens / CPU s": tokens / median(t.cpu for t in samples[mode]), **memory[mode]}
        for mode in MODES
    }
