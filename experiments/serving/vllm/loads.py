"""What is asked: the loads, one axis at a time."""

from dataclasses import dataclass, replace

BLOCK, BLOCKS, K = 32, 512, 4
"""Tokens of a block, blocks of the pool, gist tokens."""


@dataclass(frozen=True)
class Load:
    """What is asked.

    Attributes:
        prompt, input, output: tokens of each.
        distinct: instructions.
        clients: that ask at once.
        requests: in all, of one side of one round.
    """

    prompt: int = 1024
    distinct: int = 64
    clients: int = 16
    requests: int = 192
    input: int = 32
    output: int = 32

    @property
    def fits(self) -> bool:
        """Whether the pool holds all full prompts at once."""
        return self.distinct * self.prompt <= BLOCK * BLOCKS


MIDDLE = Load()
AXES: dict[str, tuple[int, ...]] = {
    "prompt": (128, 256, 512, 1024, 2048),
    "distinct": (1, 4, 16, 64, 256),
    "clients": (1, 4, 16, 64),
    "input": (16, 32, 64),
    "output": (16, 32, 64),
}
QUICK = (Load(prompt=256, distinct=4, clients=2, requests=6, output=8),)


def along(axis: str) -> tuple[Load, ...]:
    """The loads of one axis; the middle one is measured with the prompts only."""
    found = [replace(MIDDLE, **{axis: value}) for value in AXES[axis]]
    found.sort(key=lambda load: load != MIDDLE)  # what matters most comes first
    found = [replace(load, requests=max(load.requests, load.clients)) for load in found]
    return tuple(load for load in found if axis == "prompt" or load != MIDDLE)
