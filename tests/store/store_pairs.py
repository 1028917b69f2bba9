"""Gists and their keys, made without a model."""

from collections.abc import Callable

import torch

from gistkit.gist import Gist, Provenance, instruction_hash
from gistkit.store import GistKey

Pair = tuple[GistKey, Gist]
Make = Callable[..., Pair]


def make_pair(number: int = 0, *, k: int = 2, size: int = 8) -> Pair:
    """The key of "instruction <number>" and a gist that says the number in every element."""
    tokens = tuple(f"instruction {number}".encode())
    key = GistKey("m" * 64, "", "t" * 64, "decoder", k, tokens)
    gist = Gist(
        tensors={
            f"layers.{layer}.{name}": torch.full((1, 2, k, size), float(number))
            for layer in range(2)
            for name in ("keys", "values")
        },
        lengths=(k,),
        provenance=(Provenance(instruction_hash(f"instruction {number}"), len(tokens)),),
        model="m" * 64,
        template="decoder",
    )
    return key, gist


def holds(gist: Gist | None, number: int) -> bool:
    """Whether this is the whole gist of that number."""
    return gist is not None and all(bool((t == number).all()) for t in gist.tensors.values())


def same(ours: Gist | None, theirs: Gist) -> bool:
    return (
        ours is not None
        and ours.tensors.keys() == theirs.tensors.keys()
        and all(torch.equal(t, theirs.tensors[n]) for n, t in ours.tensors.items())
        and (ours.lengths, ours.provenance) == (theirs.lengths, theirs.provenance)
        and (ours.model, ours.template) == (theirs.model, theirs.template)
    )


class Clock:
    """Time that moves when told."""

    now = 1_000_000.0

    def time(self) -> float:
        self.now += 1e-3
        return self.now
