"""Compressing instructions against one plain forward pass of the same tokens.

`forward` is the bare transformers model on the same padded ids, keeping its cache and giving one
row of logits (`logits_to_keep=1`), the least a prefill does. `compress` and `cached prompt` are
`GistModel.compress` and `.cache_prompt` from text: tokenizing, checking and cutting the gist out
are in their time.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from experiments.report import Case, Comparison, Options
from experiments.subject import PUBLISHED, TINY, make_instructions, make_model
from gistkit import GistModel
from gistkit.baselines import CACHED
from gistkit.timing import interleave, timed

ROUNDS = 51
SIZES: Mapping[str, Any] = {
    "shape": PUBLISHED,
    "instruction_tokens": {
        "1 x 64": [64],
        "1 x 256": [256],
        "1 x 1024": [1024],
        "8 x 256": [256] * 8,
        "8 of 32 to 256": [32, 64, 96, 128, 160, 192, 224, 256],
    },
}
QUICK: Mapping[str, Any] = {
    "shape": TINY,
    "instruction_tokens": {"1 x 16": [16], "2 of 8 to 16": [8, 16]},
}


def run(sizes: Mapping[str, Any], options: Options) -> Iterator[Case]:
    """One case for each batch of instruction lengths."""
    model = make_model(sizes["shape"], seed=options.seed, device=options.device)
    for name, lengths in sizes["instruction_tokens"].items():
        texts = make_instructions(model, lengths, seed=options.seed)
        ids, mask = model.pad([model.encoder.instruction(text, 1) for text in texts])
        sides: dict[str, Callable[[], object]] = {
            "forward": partial(forward, model, ids, mask),
            "compress": partial(model.compress, texts),
            CACHED: partial(model.cache_prompt, texts),
        }
        samples = interleave(
            {side: timed(work, device=options.device) for side, work in sides.items()},
            rounds=options.rounds,
            warmup=2,
            seed=options.seed,
        )
        yield Case(
            name=f"{name} tokens",
            base="forward",
            samples=samples,
            comparisons=[Comparison("compress", "forward", 1.05)],
            facts={
                "compress": {"kept bytes": model.compress(texts).num_bytes},
                CACHED: {"kept bytes": model.cache_prompt(texts).num_bytes},
            },
            checks=check(model, texts, lengths),
        )


@torch.inference_mode()
def forward(model: GistModel, ids: torch.Tensor, mask: torch.Tensor) -> None:
    """What a prefill does at least."""
    model.hf_model(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1)


def check(model: GistModel, texts: list[str], lengths: list[int]) -> dict[str, str]:
    """Assert that a batch's gists are those of its instructions row by row.

    Raises:
        AssertionError: they are not.
    """
    gist = model.compress(texts)
    alone = type(gist).stack([model.compress(text) for text in texts])
    if [row.instruction_tokens for row in gist.provenance] != lengths:
        raise AssertionError("the instructions do not have the requested length")
    worst = max(
        float((gist.tensors[name] - alone.tensors[name]).abs().max()) for name in gist.tensors
    )
    if worst > 1e-4:
        raise AssertionError(f"gists of a batch and one by one differ by {worst}")
    return {"batch = one by one": f"largest difference {worst:.1e}"}
