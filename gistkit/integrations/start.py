"""How to start vLLM so that it serves a model's gists."""

import os
from collections.abc import Mapping
from typing import Any

from gistkit.model import GistModel
from gistkit.store.store import MEMORY

MODULE = "gistkit.integrations.vllm"


def connector_config(
    model: GistModel,
    store: str | os.PathLike[str],
    *,
    adapters: Mapping[str, str] | None = None,
    max_memory_bytes: int = MEMORY,
    max_bytes: int | None = None,
) -> dict[str, Any]:
    """What `KVTransferConfig(**...)`, or `--kv-transfer-config` as JSON, needs to be.

    Args:
        model: as vLLM is going to run it; its weights are looked at, not kept.
        store: place of the gists; vLLM's processes must reach it.
        adapters: fingerprint of the model with each LoRA adapter, by the name of the adapter.
        max_memory_bytes: of gists that each process keeps at hand; the others are read again.
        max_bytes: quota of the store, for the gists that vLLM makes; None: none.
    """
    return {
        "kv_connector": "GistConnector",
        "kv_connector_module_path": MODULE,
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "models": {"": model.fingerprint, **(adapters or {})},
            "gist_id": model.gist_id,
            "store": os.fspath(store),
            "max_memory_bytes": max_memory_bytes,
            "max_bytes": max_bytes,
        },
    }
