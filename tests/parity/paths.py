"""The two paths that the theorem says are one: the masked full pass, and reading from the gist.

Rows are ids, not text: nothing between the numbers and the claim. Knows nothing about prompts.

Shapes: P instruction, K gist tokens, L input (of a decoder: and output), T target, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig

from gistkit.gist import Gist, Prefix, Provenance
from gistkit.models.base import Adapter
from gistkit.models.families import FAMILIES, adapter_for
from gistkit.testing import EOS, PAD, PRINTABLE, VOCABULARY, tiny_model

GIST = VOCABULARY
TOLERANCE = 1e-4
FAMILY_NAMES = tuple(FAMILIES)
AnyPrefix = TypeVar("AnyPrefix", bound=Prefix)
DECODERS = tuple(name for name in FAMILIES if name != "t5")


@dataclass(frozen=True)
class Row:
    instruction: list[int]
    k: int
    input: list[int]
    target: list[int]

    @property
    def prompt(self) -> list[int]:
        return [*self.instruction, *[GIST] * self.k]

    @property
    def whole(self) -> list[int]:
        return [*self.prompt, *self.input]


def draw(seed: int, shapes: Sequence[tuple[int, int, int]], target: int = 6) -> list[Row]:
    """Rows of random ids, one for each (P, K, L)."""
    generator = torch.Generator().manual_seed(seed)
    letters = torch.tensor(PRINTABLE)

    def ids(n: int) -> list[int]:
        chosen: list[int] = letters[torch.randint(len(letters), (n,), generator=generator)].tolist()
        return chosen

    return [Row(ids(p), k, ids(n), ids(target)) for p, k, n in shapes]


@cache
def adapter(family: str) -> Adapter:
    return adapter_for(tiny_model(family))


def pad(rows: Sequence[list[int]], side: str) -> tuple[Tensor, Tensor]:
    def fill(tensors: list[Tensor]) -> Tensor:
        return pad_sequence(tensors, batch_first=True, padding_value=PAD, padding_side=side)

    return fill([torch.tensor(r, dtype=torch.long) for r in rows]), fill(
        [torch.ones(len(r), dtype=torch.long) for r in rows]
    )


@torch.no_grad()
def masked(model: Adapter, rows: Sequence[Row], condition: str = "gist") -> list[Tensor]:
    """Logits by the full pass under a mask: [L, V] a row, of an encoder-decoder [T, V]."""
    ids, padding = pad([row.whole for row in rows], model.padding_side)
    if model.can_cache_prompts:
        logits = model.forward(ids, padding, gist_id=GIST, condition=condition).logits
        return [one[-len(row.input) :] for one, row in zip(logits, rows, strict=True)]
    labels = torch.tensor([row.target for row in rows])
    return list(
        model.forward(ids, padding, gist_id=GIST, condition=condition, labels=labels).logits
    )


def read(model: Adapter, rows: Sequence[Row], prefix: Prefix | None) -> list[Tensor]:
    """Logits over the inputs on top of a prefix, in one batch."""
    ids, padding = pad([row.input for row in rows], "left")
    if model.can_cache_prompts:
        with torch.no_grad():
            logits = model.read(ids, padding, prefix, gist_id=GIST).logits
        return [one[-len(row.input) :] for one, row in zip(logits, rows, strict=True)]
    labels = torch.tensor([row.target for row in rows])
    with torch.no_grad():
        return list(model.read(ids, padding, prefix, gist_id=GIST, labels=labels).logits)


def compress(model: Adapter, rows: Sequence[Row]) -> Gist:
    """Gists of all rows; those of one K are computed in one batch, then all are stacked."""
    made: dict[int, Gist] = {}
    for k in {row.k for row in rows}:
        numbers = [i for i, row in enumerate(rows) if row.k == k]
        ids, padding = pad([rows[i].prompt for i in numbers], "left")
        batch = as_prefix(Gist, model.compress(ids, padding, k), [k] * len(numbers))
        made |= dict(zip(numbers, batch, strict=True))
    return Gist.stack([made[i] for i in range(len(rows))])


def cache_prompt(model: Adapter, rows: Sequence[Row]) -> Prefix:
    ids, padding = pad([row.prompt for row in rows], "left")
    return as_prefix(Prefix, model.cache_prompt(ids, padding), [len(row.prompt) for row in rows])


def as_prefix(kind: type[AnyPrefix], tensors: dict[str, Tensor], lengths: list[int]) -> AnyPrefix:
    unknown = Provenance("", 0)
    return kind(tensors, tuple(lengths), (unknown,) * len(lengths), model="", template="")


def generate(
    model: Adapter, rows: Sequence[Row], prefix: Prefix | None, new: int
) -> list[list[int]]:
    """Greedy tokens through transformers' `generate`."""
    ids, padding = pad([row.input for row in rows], "left")
    settings = GenerationConfig(
        max_new_tokens=new,
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    tokens: list[list[int]] = model.generate(ids, padding, prefix, settings, gist_id=GIST).tolist()
    return tokens


def stepwise(
    model: Adapter, rows: Sequence[Row], new: int, condition: str = "gist"
) -> list[list[int]]:
    """Greedy tokens by one masked full pass for each; no cache anywhere."""
    ids, padding = pad([row.whole for row in rows], model.padding_side)
    step = _decoder_step if model.can_cache_prompts else _encoder_decoder_step
    made = torch.empty(len(rows), 0, dtype=torch.long)
    for _ in range(new):
        with torch.no_grad():
            logits = step(model, ids, padding, made, condition)
        made = torch.cat([made, logits.argmax(-1, keepdim=True)], dim=1)
    tokens: list[list[int]] = made.tolist()
    return tokens


def _decoder_step(
    model: Adapter, ids: Tensor, padding: Tensor, made: Tensor, condition: str
) -> Tensor:
    ids, padding = torch.cat([ids, made], 1), torch.cat([padding, torch.ones_like(made)], 1)
    logits: Tensor = model.forward(ids, padding, gist_id=GIST, condition=condition).logits
    return logits[:, -1]


def _encoder_decoder_step(
    model: Adapter, ids: Tensor, padding: Tensor, made: Tensor, condition: str
) -> Tensor:
    start = torch.full((len(ids), 1), PAD)
    logits: Tensor = model.forward(
        ids,
        padding,
        gist_id=GIST,
        condition=condition,
        decoder_input_ids=torch.cat([start, made], 1),
    ).logits
    return logits[:, -1]


def gap(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference of two lists of logits."""
    pairs = zip(ours, theirs, strict=True)
    differences = [(a.float() - b.float()).abs().max().item() for a, b in pairs]
    assert all(d == d for d in differences), "NaN"
    return max(differences)


def one_by_one(
    path: Callable[..., list[Tensor]], model: Adapter, rows: Sequence[Row]
) -> list[Tensor]:
    """Logits of each row computed alone."""
    return [logits for row in rows for logits in path(model, [row])]


def from_gist(model: Adapter, rows: Sequence[Row]) -> list[Tensor]:
    return read(model, rows, compress(model, rows))
