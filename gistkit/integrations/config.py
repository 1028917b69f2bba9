"""How vLLM must be started to serve gists: written here, read and checked by the connector.

    connector_config ── --kv-transfer-config ──> vLLM ──> ConnectorConfig.parse, check_supported

Imports nothing of vLLM unless the connector calls.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gistkit.errors import OptionError, UnsupportedModelError
from gistkit.model import GistModel
from gistkit.store.store import MEMORY


def connector_config(
    model: GistModel,
    store: str | os.PathLike[str],
    *,
    adapters: Mapping[str, str] | None = None,
    max_memory_bytes: int = MEMORY,
    max_bytes: int | None = None,
) -> dict[str, Any]:
    """The arguments of vLLM's `KVTransferConfig`; as JSON, those of `--kv-transfer-config`.

    Args:
        model: the model that vLLM will run; only its fingerprint and `<GIST>` id are used.
        store: folder or URL of the gists; vLLM's processes must reach it.
        adapters: by name of a LoRA adapter, the fingerprint of the model with it.
        max_memory_bytes: of gists that each process keeps in memory.
        max_bytes: quota of the store, for the gists that vLLM makes; None: no quota.
    """
    return {
        "kv_connector": "GistConnector",
        "kv_connector_module_path": "gistkit.integrations.vllm",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "models": {"": model.fingerprint, **(adapters or {})},
            "gist_id": model.gist_id,
            "store": os.fspath(store),
            "max_memory_bytes": max_memory_bytes,
            "max_bytes": max_bytes,
        },
    }


@dataclass(frozen=True, slots=True)
class ConnectorConfig:
    """The connector's own part of `connector_config`.

    Attributes:
        models: fingerprint of the weights by name of the LoRA adapter in use; "": no adapter.
    """

    models: Mapping[str, str]
    gist_id: int
    store: str
    max_memory_bytes: int = MEMORY
    max_bytes: int | None = None

    @classmethod
    def parse(cls, extra: Mapping[str, Any]) -> "ConnectorConfig":
        """Read `kv_connector_extra_config` (raises OptionError)."""
        memory, quota = extra.get("max_memory_bytes", MEMORY), extra.get("max_bytes")
        match extra:
            case {
                "models": {"": str()} as models,
                "gist_id": int(gist_id),
                "store": str(store),
            } if isinstance(memory, int) and isinstance(quota, int | None):
                return cls(models, gist_id, store, memory, quota)
        raise OptionError(
            "kv_connector_extra_config lacks `models`, `gist_id` or `store`; make it with "
            "gistkit.integrations.config.connector_config"
        )


def check_supported(config: Any, kv_cache: Any) -> None:
    """Raise UnsupportedModelError unless gists are tested to be served exactly.

    Args:
        config: vLLM's VllmConfig.
        kv_cache: vLLM's KVCacheConfig.
    """
    reasons = list(_unsupported(config, kv_cache))
    if reasons:
        raise UnsupportedModelError(
            f"vLLM cannot serve gists with {', nor with '.join(reasons)}; not tested"
        )


def _unsupported(config: Any, kv_cache: Any) -> Iterator[str]:
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    if config.model_config.use_mla:
        yield "latent attention (MLA)"
    elif len(kv_cache.kv_cache_groups) != 1:
        yield "several kinds of attention layers (sliding windows or state-space layers)"
    elif type(kv_cache.kv_cache_groups[0].kv_cache_spec) is not FullAttentionSpec:
        yield "attention that is not full (a sliding window)"
    else:
        spec = kv_cache.kv_cache_groups[0].kv_cache_spec
        if spec.sliding_window is not None or spec.attention_chunk_size is not None:
            yield "a sliding window or attention in chunks"
        if spec.non_causal:
            yield "attention that looks ahead"
    cached = str(config.cache_config.cache_dtype)
    weights = str(config.model_config.dtype).removeprefix("torch.")
    if cached not in ("auto", weights):
        yield f"a KV cache of {cached} where the weights are {weights}"
    if config.speculative_config is not None:
        yield "speculative decoding"
    parallel = config.parallel_config
    if parallel.pipeline_parallel_size > 1:
        yield "pipeline parallelism"
    if max(parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size) > 1:
        yield "context parallelism"
    if config.kv_transfer_config.kv_load_failure_policy != "fail":
        yield "kv_load_failure_policy=recompute, which would read placeholders as text"
