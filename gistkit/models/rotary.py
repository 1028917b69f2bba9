"""Keys moved to other positions: rotary embeddings turned by the difference.

    key at position s, as the model left it  --turn by angle(t) - angle(s)-->  key at position t

Angles are those that the engine rounds to float32, and their differences are taken in float64, so
that nothing but the key's own rounding is left. Shapes: n tokens, H heads, D head size.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from gistkit.errors import UnsupportedModelError

PROVED = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose keys were compared with `GistModel.compress` (tests/integrations)."""

KINDS = ("default", "linear", "llama3")
"""Kinds of rotary embedding whose frequencies do not change with the length."""


def frequencies(config: Any) -> Tensor:
    """Radians per position [D / 2], float32, of a model with this transformers config.

    Raises:
        UnsupportedModelError: not one of those proved.
    """
    rope = dict(config.rope_parameters or {})
    kind = rope.get("rope_type", "default")
    if config.model_type not in PROVED or kind not in KINDS:
        raise UnsupportedModelError(
            f"compressing inside vLLM is proved for {', '.join(PROVED)} without length-dependent "
            f"rotary embeddings, not for {config.model_type} with {kind}"
        )
    if kind == "default":
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        steps = torch.arange(0, size, 2, dtype=torch.int64).float() / size
        plain: Tensor = 1.0 / (rope["rope_theta"] ** steps)
        return plain
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
