"""The formats of `gistkit export`: how each program stores keys and values at positions 0 .. k-1.

    hf-cache    cache.safetensors                                 transformers' DynamicCache
    peft        adapter_config.json, adapter_model.safetensors    a prefix-tuning adapter
    vllm        store/, kv_transfer_config.json, request.json     what the engine and a request need

hf-cache: names are attributes, `cache.layers[0].keys` is `layers.0.keys`, [1, H, K, D].

peft: the learned parameters are a KV prefix, one row for each virtual token, read as [2 N, H, D]:
keys and values of each layer in turn, as they enter the cache. So the values of a gist go in
exactly, and PEFT's own `generate` places the input after them as gistkit's does.

vllm: `vllm serve BASE --kv-transfer-config "$(cat FOLDER/kv_transfer_config.json)"`, then
`curl HOST/v1/completions -d @request.json` with {input} replaced. Knows nothing of vLLM itself.

Shapes: N layers, H heads of keys and values, K gist tokens, D head size.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gistkit.errors import GistFileError, UnsupportedModelError
from gistkit.gist import Gist
from gistkit.integrations.config import connector_config
from gistkit.model import GistModel
from gistkit.store import GistStore

CACHE = "cache.safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "prompt_embeddings"
STORE, START, REQUEST = "store", "kv_transfer_config.json", "request.json"

Tensors = Mapping[str, Tensor]
Layers = Sequence[tuple[Tensor, Tensor]]
"""Keys and values [1, H, K, D] of each layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """One gist to be written: all that a format may need.

    Attributes:
        layers: the gist's keys and values.
        facts: what `gist.json` says of it.
        target: where the folder will be.
    """

    gist: Gist
    model: GistModel
    layers: Layers
    facts: Mapping[str, Any]
    target: Path


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
            "this gist is no KV cache but rows of an encoder's hidden states (T5), which no other "
            "program can use; keep it as a gist file"
        )
    return pairs


def write_hf_cache(folder: Path, exported: Exported) -> None:
    _write_tensors(folder / CACHE, _tensors_of(exported.layers))


def read_hf_cache(folder: Path, id: str) -> Tensors:
    return _read_tensors(folder / CACHE)


def write_peft(folder: Path, exported: Exported) -> None:
    """Raises UnsupportedModelError where layers differ in size, for which PEFT has one."""
    layers = exported.layers
    _, heads, k, size = layers[0][0].shape
    if any(tensor.shape != layers[0][0].shape for pair in layers for tensor in pair):
        raise UnsupportedModelError(
            "the layers of this model differ in heads or head size, and PEFT's prefix has one size "
            "for all; use hf-cache"
        )
    rows = torch.stack([tensor[0].transpose(0, 1) for pair in layers for tensor in pair], dim=1)
    _write_tensors(folder / ADAPTER_WEIGHTS, {PREFIX: rows.reshape(k, -1)})  # of [K, 2 N, H, D]
    config = {
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": exported.facts["base_model"],
        "inference_mode": True,
        "num_virtual_tokens": k,
        "num_layers": len(layers),
        "num_attention_heads": heads,
        "token_dim": heads * size,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": heads * size,
        "prefix_projection": False,
    }
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def read_peft(folder: Path, id: str) -> Tensors:
    config = json.loads((folder / ADAPTER_CONFIG).read_text())
    match config:
        case {
            "num_virtual_tokens": int(k),
            "num_layers": int(layers),
            "num_attention_heads": int(heads),
            "token_dim": int(width),
        } if min(k, layers, heads, width) > 0 and width % heads == 0:
            pass
        case _:
            raise GistFileError(f"{folder / ADAPTER_CONFIG} is damaged; export the gist again")
    rows = _read_tensors(folder / ADAPTER_WEIGHTS)[PREFIX]
    if rows.numel() != k * 2 * layers * width:
        raise GistFileError(f"{folder / ADAPTER_WEIGHTS} does not fit its configuration")
    split = rows.view(k, 2 * layers, heads, width // heads).permute(1, 2, 0, 3)[:, None]
    whole = [tensor.contiguous() for tensor in split]
    return _tensors_of(list(zip(whole[::2], whole[1::2], strict=True)))


def write_vllm(folder: Path, exported: Exported) -> None:
    facts = exported.facts
    with GistStore(folder / STORE) as store:
        store.put(None, exported.gist)
    start = connector_config(exported.model, exported.target.resolve() / STORE)
    (folder / START).write_text(json.dumps(start) + "\n")
    request = {
        "model": facts["base_model"],
        "prompt": facts["prompt"],
        "add_special_tokens": False,
        "temperature": 0,
        "kv_transfer_params": {"gist": facts["id"]},
    }
    (folder / REQUEST).write_text(json.dumps(request, indent=2) + "\n")


def read_vllm(folder: Path, id: str) -> Tensors:
    if not (folder / STORE).is_dir():  # opening a store would make it
        raise GistFileError(f"no store in {folder}; export the gist again")
    with GistStore(folder / STORE) as store:
        return store.load(id).tensors


@dataclass(frozen=True, slots=True)
class Format:
    """How a gist is written into a folder, and its tensors read again, given the gist's id."""

    write: Callable[[Path, Exported], None]
    read: Callable[[Path, str], Tensors]


FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "hf-cache": Format(write_hf_cache, read_hf_cache),
        "peft": Format(write_peft, read_peft),
        "vllm": Format(write_vllm, read_vllm),
    }
)


def _tensors_of(layers: Layers) -> Tensors:
    return {
        f"layers.{number}.{name}": tensor
        for number, pair in enumerate(layers)
        for name, tensor in zip(("keys", "values"), pair, strict=True)
    }


def _write_tensors(path: Path, tensors: Tensors) -> None:
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt"})


def _read_tensors(path: Path) -> Tensors:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise GistFileError(f"{path} cannot be read ({error}); export the gist again") from error
