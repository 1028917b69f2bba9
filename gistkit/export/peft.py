"""`peft`: a prefix-tuning adapter, whose learned parameters are a KV prefix at positions 0 .. k-1.

PEFT keeps one row for each virtual token, read as [2 N, H, D]: keys and values of each layer by
turns, as they enter the cache. So the values of a gist go in exactly, and PEFT's own `generate`
places the input behind them as ours does.

Shapes: K gist tokens, N layers, H heads of keys and values, D head size.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gistkit.errors import GistFileError, UnsupportedModelError
from gistkit.export.layers import Layers, tensors_of
from gistkit.export.reading import read_tensors, write_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NAME = "prompt_embeddings"


def write(folder: Path, layers: Layers, base: str) -> None:
    """Write the adapter of the model `base`.

    Raises:
        UnsupportedModelError: layers that differ, for which the layout has one size.
        OSError, SafetensorError: it could not be written.
    """
    _, heads, k, size = layers[0][0].shape
    if any(tensor.shape != layers[0][0].shape for pair in layers for tensor in pair):
        raise UnsupportedModelError(
            "the layers of this model differ in heads or head size, and PEFT's prefix has one size "
            "for all; use hf-cache"
        )
    rows = torch.stack([tensor[0].transpose(0, 1) for pair in layers for tensor in pair], dim=1)
    write_tensors(folder / WEIGHTS, {NAME: rows.reshape(k, -1)})  # of [K, 2 N, H, D]
    config = {
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "num_virtual_tokens": k,
        "num_layers": len(layers),
        "num_attention_heads": heads,
        "token_dim": heads * size,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": heads * size,
        "prefix_projection": False,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def read(folder: Path, id: str) -> Mapping[str, Tensor]:
    """The tensors of the gist (raises GistFileError, ValueError, KeyError)."""
    config = json.loads((folder / CONFIG).read_text())
    match config:
        case {
            "num_virtual_tokens": int(k),
            "num_layers": int(layers),
            "num_attention_heads": int(heads),
            "token_dim": int(width),
        } if min(k, layers, heads, width) > 0 and width % heads == 0:
            pass
        case _:
            raise GistFileError(f"{folder / CONFIG} is damaged; export the gist again")
    rows = read_tensors(folder / WEIGHTS)[NAME]
    if rows.numel() != k * 2 * layers * width:
        raise GistFileError(f"{folder / WEIGHTS} does not fit its configuration")
    kept = rows.view(k, 2 * layers, heads, width // heads).permute(1, 2, 0, 3)[:, None]
    whole = [tensor.contiguous() for tensor in kept]
    return tensors_of(list(zip(whole[::2], whole[1::2], strict=True)))
