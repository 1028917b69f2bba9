"""`vllm`: a store with the gist, how to start the engine on it, and a request that names it.

    vllm serve BASE --kv-transfer-config "$(cat FOLDER/kv_transfer_config.json)"
    curl HOST/v1/completions -d @request.json       with {input} replaced

Knows nothing of vLLM itself.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gistkit.errors import GistFileError
from gistkit.gist import Gist
from gistkit.integrations.config import connector_config
from gistkit.model import GistModel
from gistkit.store import GistStore

STORE, START, REQUEST = "store", "kv_transfer_config.json", "request.json"


def write(
    folder: Path, gist: Gist, model: GistModel, facts: Mapping[str, Any], target: Path
) -> None:
    """Write the three; `target` is where `folder` is going to be.

    Raises:
        SaveError, OSError: it could not be written.
    """
    with GistStore(folder / STORE) as store:
        store.put(None, gist)
    start = connector_config(model, target.resolve() / STORE)
    (folder / START).write_text(json.dumps(start) + "\n")
    request = {
        "model": facts["base_model"],
        "prompt": facts["prompt"],
        "add_special_tokens": False,
        "temperature": 0,
        "kv_transfer_params": {"gist": facts["id"]},
    }
    (folder / REQUEST).write_text(json.dumps(request, indent=2) + "\n")


def read(folder: Path, id: str) -> Mapping[str, Tensor]:
    """The tensors of the gist (raises GistFileError, OptionError)."""
    if not (folder / STORE).is_dir():  # opening one would make it
        raise GistFileError(f"no store in {folder}; export the gist again")
    with GistStore(folder / STORE) as store:
        return store.load(id).tensors
