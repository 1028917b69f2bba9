"""What the gist mask costs in training: one step with it against the same step without.

The rows, the model and the optimizer step are those of the `training` theme (`packed, one batch`);
`pos_control` sees everything, so the two differ by the mask alone. Each side runs twice a round, so
that `gist` against `gist, again` shows what the machine makes of two equal sides; `twice` is the
sum of both, and steadier.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from experiments import training
from experiments.report import Case, Comparison, Options
from gistkit.data.collate import Collator
from gistkit.timing import Timing, interleave, timed

ROUNDS = 5
SIZES: Mapping[str, Any] = {
    name: {"shape": size["shape"], "count": size["batch"] * size["accumulation"], "at_most": 1.03}
    for name, size in reversed(training.SIZES.items())
}
QUICK: Mapping[str, Any] = {
    name: {"shape": size["shape"], "count": 8, "at_most": None}
    for name, size in training.QUICK.items()
}


def run(sizes: Mapping[str, Any], options: Options) -> Iterator[Case]:
    """One case for each model shape."""
    texts = training.read_rows()
    for name, size in sizes.items():
        model = training.make_model(size["shape"], texts, options)
        found = model.encoder.examples(texts[: size["count"] + 8])
        rows = [row for row in found if row is not None][: size["count"]]
        collate = partial(
            Collator,
            gist_id=model.gist_id,
            pad_id=int(model.tokenizer.pad_token_id),
            encoder_decoder=model.adapter.padding_side == "right",
            pack=training.CAPACITY,
        )
        masked = [collate()(rows)]
        unmasked = [collate(conditions={"pos_control": 1.0})(rows)]
        assert torch.equal(masked[0]["input_ids"], unmasked[0]["input_ids"])
        optimizer = torch.optim.AdamW(model.hf_model.parameters(), lr=0.0, fused=True)
        step = partial(training.step, model, optimizer, losses=training.labelled)
        sides: dict[str, Callable[[], training.Outcome]] = {
            "gist": partial(step, masked),
            "pos_control": partial(step, unmasked),
            "gist, again": partial(step, masked),
            "pos_control, again": partial(step, unmasked),
        }
        checks = check(sides)
        timers = {side: timed(work, device=options.device) for side, work in sides.items()}
        # no warm-up: the checks were steps, too
        samples = interleave(timers, rounds=options.rounds, warmup=0, seed=options.seed)
        for side in ("gist", "pos_control"):
            pairs = zip(samples[side], samples[f"{side}, again"], strict=True)
            samples[f"{side}, twice"] = [Timing(a.wall + b.wall, a.cpu + b.cpu) for a, b in pairs]
        yield Case(
            name=name,
            base="pos_control",
            samples=samples,
            comparisons=[
                Comparison("gist, twice", "pos_control, twice", size["at_most"]),
                Comparison("gist", "pos_control", None),
                Comparison("gist, again", "pos_control, again", None),
                Comparison("gist", "gist, again", None),
            ],
            facts={"gist": {"computed tokens": sum(map(training.tokens, masked))}},
            checks={"losses": checks},
        )


def check(sides: Mapping[str, Callable[[], training.Outcome]]) -> str:
    """Assert that the mask is there: same rows, another loss."""
    masked, unmasked = sides["gist"]()[0], sides["pos_control"]()[0]
    assert masked != unmasked
    return f"gist {masked:.4f}, pos_control {unmasked:.4f}, of the same rows"
