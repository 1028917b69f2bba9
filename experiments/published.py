"""The published caching case: 256 + 1 instruction tokens, 16 of input, 32 new ones, batch 1.

`first token` and `32 tokens` are `GistModel.generate` from text to text, caches built beforehand.
`where the time goes` answers from the same gist in three ways: through `GistModel.generate`,
through transformers' `generate` on ids, and by a bare loop of forward passes with no options, no
mask and no stopping rule: what is above the loop is the price of those layers.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from experiments.report import Case, Comparison, Options
from experiments.subject import (
    PUBLISHED,
    TINY,
    Request,
    make_inputs,
    make_instructions,
    make_model,
)
from gistkit import GistModel, Prefix
from gistkit.baselines import CACHED, FULL, GIST, MODES, NONE
from gistkit.models.kv_batch import CACHE
from gistkit.timing import interleave, timed

ROUNDS = 51
SIZES: Mapping[str, Any] = {
    "shape": PUBLISHED,
    "instruction_tokens": 256,
    "input_tokens": 16,
    "new_tokens": 32,
}
QUICK: Mapping[str, Any] = {
    "shape": TINY,
    "instruction_tokens": 24,
    "input_tokens": 8,
    "new_tokens": 6,
}


def run(sizes: Mapping[str, Any], options: Options) -> Iterator[Case]:
    """First token, whole answer, and the same answer by three ways."""
    model = make_model(sizes["shape"], seed=options.seed, device=options.device)
    request = Request.make(
        model,
        make_instructions(model, [sizes["instruction_tokens"]], seed=options.seed),
        make_inputs(model, [sizes["input_tokens"]], seed=options.seed),
    )
    new = sizes["new_tokens"]
    checks = request.check(new)
    for name, tokens in (("first token", 1), (f"{new} tokens", new)):
        sides = {mode: partial(request.answer, mode, tokens) for mode in MODES}
        samples = interleave(
            {mode: timed(work, device=options.device) for mode, work in sides.items()},
            rounds=options.rounds,
            warmup=2,
            seed=options.seed + tokens,
        )
        yield Case(
            name=name,
            base=FULL,
            samples=samples,
            comparisons=[
                Comparison(GIST, NONE, 1.03),
                Comparison(GIST, CACHED),
            ],
            facts={s: {"kept bytes": n} for s, n in request.kept_bytes().items() if n},
            checks=checks,
        )
    yield from where_time_goes(request, new, options)


def where_time_goes(request: Request, new: int, options: Options) -> Iterator[Case]:
    """One answer through each layer, from a gist and from the cached prompt."""
    model = request.model
    ids, _ = model.pad([model.encoder.input(request.inputs[0])])
    for tokens in (1, new):
        sides: dict[str, Callable[[], Any]] = {
            "bare loop": partial(loop, model, ids, request.gist, tokens),
            "transformers generate": partial(hf_generate, model, ids, request.gist, tokens),
            "GistModel.generate": partial(request.answer, GIST, tokens),
            f"{CACHED}, bare loop": partial(loop, model, ids, request.cache, tokens),
        }
        answers = [
            model.tokenizer.decode(sides["bare loop"]()),
            model.tokenizer.decode(sides["transformers generate"]()),
            *request.answer(GIST, tokens),
        ]
        if len(set(answers)) != 1:
            raise AssertionError(f"the three ways give different tokens: {answers}")
        samples = interleave(
            {side: timed(work, device=options.device) for side, work in sides.items()},
            rounds=options.rounds,
            warmup=2,
            seed=options.seed + tokens,
        )
        yield Case(
            name=f"where the time goes, {tokens} token{'s' if tokens > 1 else ''}",
            base="bare loop",
            samples=samples,
            checks={"bare loop = generate = GistModel": f"{tokens} greedy tokens equal"},
        )


def cache_of(model: GistModel, prefix: Prefix) -> DynamicCache:
    """A prefix as the cache that transformers reads on top of."""
    layers = range(len(prefix.tensors) // 2)
    pairs = [
        (prefix.tensors[f"layers.{i}.keys"], prefix.tensors[f"layers.{i}.values"]) for i in layers
    ]
    return DynamicCache(pairs, config=model.hf_model.config)


@torch.inference_mode()
def loop(model: GistModel, ids: Tensor, prefix: Prefix, tokens: int) -> Tensor:
    """Greedy decoding by hand; [tokens] ids."""
    cache, new = cache_of(model, prefix), []
    for _ in range(tokens):
        reads: dict[str, Any] = {CACHE: cache, "use_cache": True, "logits_to_keep": 1}
        logits = model.hf_model(input_ids=ids, **reads).logits
        ids = logits[:, -1].argmax(-1, keepdim=True)
        new.append(ids)
    return torch.cat(new, dim=1)[0]


def hf_generate(model: GistModel, ids: Tensor, prefix: Prefix, tokens: int) -> Tensor:
    """The same through transformers; [tokens] ids."""
    front = ids.new_full((1, prefix.num_tokens), model.gist_id)
    whole = torch.cat([front, ids], dim=1)
    hf_model: Any = model.hf_model
    output = hf_model.generate(
        input_ids=whole,
        attention_mask=torch.ones_like(whole),
        **{CACHE: cache_of(model, prefix)},
        generation_config=GenerationConfig(
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=model.tokenizer.eos_token_id,
            pad_token_id=model.tokenizer.pad_token_id,
        ),
    )
    assert isinstance(output, Tensor)
    return output[0, whole.shape[1] :]
