"""What the connector is not proved for, refused when the engine starts."""

from collections.abc import Iterator
from typing import Any

from gistkit.errors import UnsupportedModelError


def refuse(config: Any, kv_cache: Any) -> None:
    """Raise UnsupportedModelError where gists are not proved to be served exactly.

    Args:
        config: vLLM's VllmConfig.
        kv_cache: its KVCacheConfig.
    """
    reasons = list(_reasons(config, kv_cache))
    if reasons:
        raise UnsupportedModelError(
            "vLLM cannot serve gists with " + ", nor with ".join(reasons) + "; not proved"
        )


def _reasons(config: Any, kv_cache: Any) -> Iterator[str]:
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
    kept = str(config.cache_config.cache_dtype)
    weights = str(config.model_config.dtype).removeprefix("torch.")
    if kept not in ("auto", weights):
        yield f"a KV cache of {kept} where the weights are {weights}"
    if config.speculative_config is not None:
        yield "speculative decoding"
    if config.parallel_config.pipeline_parallel_size > 1:
        yield "pipeline parallelism"
    if (
        config.parallel_config.decode_context_parallel_size > 1
        or config.parallel_config.prefill_context_parallel_size > 1
    ):
        yield "context parallelism"
    if config.kv_transfer_config.kv_load_failure_policy != "fail":
        yield "kv_load_failure_policy=recompute, which would read placeholders as text"
