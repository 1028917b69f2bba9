"""The one shape that other programs know: keys and values of each layer.

Shapes: N layers, H heads, K gist tokens, D head size.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from gistkit.errors import UnsupportedModelError
from gistkit.gist import Gist

Layers = Sequence[tuple[Tensor, Tensor]]
"""Keys and values [1, H, K, D] of each layer."""


def layers_of(gist: Gist) -> Layers:
    """The gist as N pairs (raises UnsupportedModelError where it is no KV cache)."""
    pairs = []
    for number in range(len(gist.tensors) // 2):
        keys = gist.tensors.get(f"layers.{number}.keys")
        values = gist.tensors.get(f"layers.{number}.values")
        if keys is None or values is None or keys.dim() != 4:
            break
        pairs.append((keys, values))
    if not pairs or 2 * len(pairs) != len(gist.tensors):
        raise UnsupportedModelError(
            "this gist is no KV cache but rows of an encoder's hidden states (T5); no other "
            "program has a place for them: keep it as gistkit's own file"
        )
    return pairs


def tensors_of(layers: Layers) -> Mapping[str, Tensor]:
    """The pairs under their names in a gist."""
    return {
        f"layers.{number}.{name}": tensor
        for number, pair in enumerate(layers)
        for name, tensor in zip(("keys", "values"), pair, strict=True)
    }
