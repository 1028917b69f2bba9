"""Rotary positions: which kinds are proved, how far they reach, and keys moved to other positions.

    key at position s, as the model left it  --turn by angle(t) - angle(s)-->  key at position t

Angles are those that models round to float32, and their differences are taken in float64, so that
nothing but the key's own rounding is left. Shapes: n tokens, H heads, D head size.
"""

from typing import Any

import torch
from torch import Tensor

from gistkit.errors import UnsupportedModelError

PROVED = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
"""Kinds for which `tests/parity` proves the theorem."""

FIXED = ("default", "linear", "llama3")
"""Kinds whose frequencies do not change with the length, so that keys can be moved."""

CHANGING = ("dynamic", "longrope")
"""Kinds that rotate differently past the length the model was first trained for."""


def parameters(config: Any) -> list[dict[str, Any]]:
    """The rotary settings of a text config: one for all layers, or one for each layer type."""
    rope = config.rope_parameters
    return [rope] if "rope_type" in rope else [kind for kind in rope.values() if kind]


def check(config: Any) -> None:
    """Raise UnsupportedModelError where a text config has a kind that is not proved."""
    for rope in parameters(config):
        if rope["rope_type"] not in PROVED:
            raise UnsupportedModelError(
                f"rotary variant {rope['rope_type']!r} is not proved to work with gists; "
                f"supported: {', '.join(PROVED)}"
            )


def max_positions(config: Any) -> int:
    """Positions the model was made for; fewer where its rotation changes past a length.

    Raises as `check`.
    """
    check(config)
    limits = [config.max_position_embeddings]
    for rope in parameters(config):
        if rope["rope_type"] in CHANGING:
            limits.append(rope.get("original_max_position_embeddings", limits[0]))
    return int(min(limits))


def frequencies(config: Any) -> Tensor:
    """Radians per position [D / 2], float32, of a text config with one kind of `FIXED`."""
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    if kind == "default":
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        steps = torch.arange(0, size, 2, dtype=torch.int64).float() / size
        plain: Tensor = 1.0 / (rope["rope_theta"] ** steps)
        return plain
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    found: Tensor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))[0]
    return found.float()


def moved(keys: Tensor, sources: Tensor, targets: Tensor, frequencies: Tensor) -> Tensor:
    """Keys [n, H, D] from positions `sources` [n] to `targets` [n], in their own precision.

    The halves of D are paired, as in Llama.
    """

    def angles(positions: Tensor) -> Tensor:
        return (positions.float()[:, None] * frequencies).double()

    turn = (angles(targets) - angles(sources))[:, None, :].to(keys.device)  # [n, 1, D / 2]
    cos, sin = turn.cos().float(), turn.sin().float()
    first, second = keys.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(
        keys.dtype
    )
