"""`hf-cache`: what `transformers.DynamicCache` holds, as one safetensors file.

Names are those of its attributes: `cache.layers[0].keys` is `layers.0.keys`, [1, H, K, D].
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from gistkit.export.layers import Layers, tensors_of
from gistkit.export.reading import read_tensors, write_tensors

FILE = "cache.safetensors"


def write(folder: Path, layers: Layers) -> None:
    """Write the cache (raises OSError, SafetensorError)."""
    write_tensors(folder / FILE, tensors_of(layers))


def read(folder: Path, id: str) -> Mapping[str, Tensor]:
    """The tensors of the gist (raises GistFileError)."""
    return read_tensors(folder / FILE)
