"""One decode step with a gist against the same step with no prompt at all.

The time between one token and the next inside `GistModel.generate`, the middle one of each answer:
what a user's request pays per token. With the full prompt a step is that of the cached prompt; its
prefill is another matter (see `published` and `throughput`).
"""

from collections.abc import Iterator, Mapping
from functools import partial
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
from gistkit.baselines import FULL, GIST, MODES, NONE
from gistkit.timing import Timing, interleave

ROUNDS = 51
SIZES: Mapping[str, Any] = {
    "shape": PUBLISHED,
    "instruction_tokens": 256,
    "input_tokens": 16,
    "new_tokens": 17,
    "batches": (1, 8, 32),
}
QUICK: Mapping[str, Any] = {
    "shape": TINY,
    "instruction_tokens": 24,
    "input_tokens": 8,
    "new_tokens": 6,
    "batches": (1, 2),
}


def run(sizes: Mapping[str, Any], options: Options) -> Iterator[Case]:
    """One case a batch size."""
    model = make_model(sizes["shape"], seed=options.seed, device=options.device)
    for batch in sizes["batches"]:
        request = Request.make(
            model,
            make_instructions(model, [sizes["instruction_tokens"]] * batch, seed=options.seed),
            make_inputs(model, [sizes["input_tokens"]] * batch, seed=options.seed),
        )
        checks = request.check(sizes["new_tokens"])
        sides = {
            mode: partial(middle_step, request, mode, sizes["new_tokens"])
            for mode in MODES
            if mode != FULL
        }
        samples = interleave(sides, rounds=options.rounds, warmup=2, seed=options.seed + batch)
        yield Case(
            name=f"batch {batch}",
            base=NONE,
            samples=samples,
            comparisons=[Comparison(GIST, NONE, 1.03)],
            facts={s: {"kept bytes": n} for s, n in request.kept_bytes().items() if n},
            checks=checks,
        )


def middle_step(request: Request, mode: str, tokens: int) -> Timing:
    """The median time from one token to the next."""
    clock = StepClock()
    request.answer(mode, tokens, clock)
    return clock.step()
