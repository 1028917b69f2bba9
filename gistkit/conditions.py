"""Conditions: what tokens after a gist may see, in training and evaluation (paper, section 3).

    segments   0 before the gist | 1 gist | 2 after it ── relabel ──> labels that a mask reads

A row of CONDITIONS knows all that is special about it: the labels of its mask, and how a model
trained under it answers. Imports no torch, so that a command line can list them.

Shapes: B batch, S sequence.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from gistkit.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor

BEFORE, GIST, AFTER = 0, 1, 2

FROM_GIST, FULL_PROMPT, NO_PROMPT = "gist", "full prompt", "no prompt"
"""Modes of `gistkit.baselines`: what a model reads before its input."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition.

    Attributes:
        relabel: segments [B, S] to the labels that `masks.attends` reads. Its docstring shows the
            mask, which a test compares.
        mode: what the model reads to answer under it, a mode of `gistkit.baselines`; "" where only
            the mask can tell (evaluated with `path="mask"`).
        sees: what the answer sees, for tables.
    """

    relabel: Callable[["Tensor"], "Tensor"]
    mode: str
    sees: str


def _gist(labels: "Tensor") -> "Tensor":
    """What follows the gist sees the gist and itself, never the instruction.

      a b G G x y
    a 1 . . . . .
    b 1 1 . . . .
    G 1 1 1 . . .
    G 1 1 1 1 . .
    x . . 1 1 1 .
    y . . 1 1 1 1
    """
    return labels


def _pos_control(labels: "Tensor") -> "Tensor":
    """Nothing is masked beyond causality: the prompt is visible.

      a b G G x y
    a 1 . . . . .
    b 1 1 . . . .
    G 1 1 1 . . .
    G 1 1 1 1 . .
    x 1 1 1 1 1 .
    y 1 1 1 1 1 1
    """
    return labels.new_full(labels.shape, AFTER)


def _neg_control(labels: "Tensor") -> "Tensor":
    """What follows the gist sees neither the instruction nor the gist.

      a b G G x y
    a 1 . . . . .
    b 1 1 . . . .
    G 1 1 1 . . .
    G 1 1 1 1 . .
    x . . . . 1 .
    y . . . . 1 1
    """
    return labels.masked_fill(labels == GIST, BEFORE)


CONDITIONS: Mapping[str, Condition] = MappingProxyType(
    {
        "gist": Condition(_gist, FROM_GIST, "the gist"),
        "pos_control": Condition(_pos_control, FULL_PROMPT, "the whole instruction"),
        "neg_control": Condition(_neg_control, NO_PROMPT, "nothing of the instruction"),
    }
)


def condition_named(name: str) -> Condition:
    """The row of CONDITIONS (raises OptionError)."""
    if name not in CONDITIONS:
        raise OptionError(f"unknown condition {name!r}; choose one of {', '.join(CONDITIONS)}")
    return CONDITIONS[name]


def condition_for(mode: str) -> str:
    """The condition whose answers are made in this mode of `gistkit.baselines`."""
    return next(name for name, condition in CONDITIONS.items() if condition.mode == mode)
