"""Safetensors files that nobody vouches for."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gistkit.errors import GistFileError


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write them as PyTorch's (raises OSError, SafetensorError)."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(kept, path, metadata={"format": "pt"})


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """All of a file (raises GistFileError)."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise GistFileError(f"{path} cannot be read ({error}); export the gist again") from error
