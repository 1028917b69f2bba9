"""What the processes of test_gist_store_processes.py do. Imports no transformers."""

import os
import random
from contextlib import suppress

import torch

from gistkit.errors import GistkitError
from gistkit.gist import Gist, Provenance, instruction_hash
from gistkit.store import GistKey, GistStore

EACH = 6  # numbers of one writer


def versioned(number: int, version: int) -> tuple[GistKey, Gist]:
    """The key of `number`, and a gist that says `version` everywhere."""
    tokens = tuple(f"instruction {number}".encode())
    key = GistKey("m" * 64, "", "t" * 64, "decoder", 2, tokens)
    row = Provenance(instruction_hash(f"instruction {number}"), len(tokens))
    names = [f"layers.{layer}.{kind}" for layer in range(2) for kind in ("keys", "values")]
    tensors = {name: torch.full((1, 4, 2, 64), float(version)) for name in names}
    return key, Gist(tensors, (2,), (row,), "m" * 64, "decoder")


def version_of(gist: Gist) -> int:
    """The version, if every element says the same."""
    values = {float(v) for tensor in gist.tensors.values() for v in tensor.unique()}
    assert len(values) == 1, "a mixed gist"
    return int(values.pop())


def write_until_killed(root: str, log: str, first: int, seed: int) -> None:
    """Put and remove numbers of one's own, and log what was begun and what was acknowledged."""
    choose = random.Random(seed)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    version = seed * 50_000  # stays below 2**24, which a float32 tells apart

    def note(*words: object) -> None:
        os.write(handle, (" ".join(map(str, words)) + "\n").encode())

    with GistStore(root) as store:
        note("ready")
        while True:
            version += 1
            number = first + choose.randrange(EACH)
            key, gist = versioned(number, version)
            if choose.random() < 0.2:
                note("begin", number, 0)
                store.remove(key.id)
                note("done", number, 0)
            elif choose.random() < 0.2:
                with suppress(GistkitError):
                    store.pin(key.id, choose.random() < 0.5)
            else:
                note("begin", number, version)
                store.put(key, gist)
                note("done", number, version)


def crowd(root: str, seed: int, steps: int, max_bytes: int) -> None:
    """Everything at once, on numbers that others use as well; ends at the first wrong answer."""
    choose = random.Random(seed)
    with GistStore(root, max_bytes=max_bytes, max_memory_bytes=40_000) as store:
        for step in range(steps):
            number = choose.randrange(30)
            key, gist = versioned(number, number)
            action = choose.random()
            if action < 0.5:
                found = store.get(key)
                assert found is None or version_of(found) == number
            elif action < 0.85:
                store.put(key, gist, ttl=choose.choice([None, 0.05, 1000]))
            elif action < 0.93:
                store.remove(key.id)
            elif action < 0.97:
                with suppress(GistkitError):  # gone, or the quota is full of pins
                    store.pin(key.id, choose.random() < 0.2)
            elif action < 0.98:
                store.gc()
            else:
                assert store.verify()["damaged"] == []
            if step % 50 == 0:
                store.entries()
                store.stats()


def same_version(store: GistStore, number: int) -> int:
    """The version that is served; 0: none."""
    found = store.get(versioned(number, 0)[0])
    return 0 if found is None else version_of(found)
