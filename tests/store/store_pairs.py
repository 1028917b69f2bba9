"""Gists and their keys, made without a model."""

import torch

from gisting.gist import Gist, Provenance, instruction_hash
from gisting.store import GistKey

Pair = tuple[GistKey, Gist]


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
