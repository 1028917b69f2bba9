"""What is not tested is refused when vLLM starts, with the reason."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gistkit import GistModel
from gistkit.errors import UnsupportedModelError
from gistkit.integrations.config import check_supported
from gistkit.testing import tiny_gist_model
from tests.integrations.engines import serving

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kv_cache_dtype": "fp8"}, "fp8"),
        ({"transfer": {"kv_load_failure_policy": "recompute"}}, "recompute"),
    ],
    ids=["fp8", "recompute"],
)
def test_an_engine_does_not_start(
    options: dict[str, Any], reason: str, folder: Path, model: GistModel
) -> None:
    with pytest.raises(Exception, match=reason), serving(folder, model, **options):
        pass


def test_speculative_decoding_does_not_start(folder: Path, model: GistModel) -> None:
    """In a process of its own: vLLM then imports numba, and no other engine starts after it."""
    code = (
        "import sys; from pathlib import Path; from engines import serving\n"
        "from gistkit import GistModel\n"
        "folder = Path(sys.argv[1]); model = GistModel.from_pretrained(folder / 'model')\n"
        "with serving(folder, model, "
        "speculative_config={'method': 'ngram', 'num_speculative_tokens': 2}): pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode != 0
    assert "vLLM cannot serve gists with speculative decoding" in done.stderr


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_a_model_with_a_sliding_window_does_not_start(family: str, tmp_path: Path) -> None:
    """In every layer, or in some of them."""
    made = tiny_gist_model(
        family, hidden_size=128, num_attention_heads=2, num_key_value_heads=2, head_dim=64,
        sliding_window=64,
    )  # fmt: skip
    made.save_pretrained(tmp_path / "model")
    with pytest.raises(Exception, match="sliding"), serving(tmp_path, made):
        pass


def engine(**changes: Any) -> tuple[Any, Any]:
    """What vLLM tells a connector of an engine that is supported, but for `changes`."""
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    facts: dict[str, Any] = {
        "use_mla": False,
        "cache_dtype": "auto",
        "speculative_config": None,
        "pipeline_parallel_size": 1,
        "decode_context_parallel_size": 1,
        "prefill_context_parallel_size": 1,
        "kv_load_failure_policy": "fail",
        "attention": {},
        "groups": 1,
        "spec": FullAttentionSpec,
    } | changes
    sizes = {"block_size": 32, "num_kv_heads": 2, "head_size": 64, "dtype": torch.float32}
    spec = facts["spec"](**sizes, **facts["attention"])
    config = SimpleNamespace(
        model_config=SimpleNamespace(use_mla=facts["use_mla"], dtype=torch.float32),
        cache_config=SimpleNamespace(cache_dtype=facts["cache_dtype"]),
        speculative_config=facts["speculative_config"],
        parallel_config=SimpleNamespace(
            pipeline_parallel_size=facts["pipeline_parallel_size"],
            decode_context_parallel_size=facts["decode_context_parallel_size"],
            prefill_context_parallel_size=facts["prefill_context_parallel_size"],
        ),
        kv_transfer_config=SimpleNamespace(kv_load_failure_policy=facts["kv_load_failure_policy"]),
    )
    groups = [SimpleNamespace(kv_cache_spec=spec)] * facts["groups"]
    return config, SimpleNamespace(kv_cache_groups=groups)


@pytest.mark.parametrize("kept", ["auto", "float32"])
def test_what_is_supported_is_not_refused(kept: str) -> None:
    check_supported(*engine(cache_dtype=kept))


def test_whatever_vllm_keeps_other_than_the_weights_dtype() -> None:
    from typing import get_args

    from vllm.config.cache import CacheDType

    kinds = set(get_args(CacheDType)) - {"auto", "float32"}
    assert {"fp8", "bfloat16", "int8_per_token_head", "nvfp4", "turboquant_4bit_nc"} <= kinds
    for kind in kinds:
        with pytest.raises(UnsupportedModelError, match=f"a KV cache of {kind} where"):
            check_supported(*engine(cache_dtype=kind))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_mla": True}, "MLA"),
        ({"groups": 2}, "several kinds of attention"),
        ({"attention": {"sliding_window": 64}}, "a sliding window"),
        ({"attention": {"attention_chunk_size": 64}}, "in chunks"),
        ({"attention": {"non_causal": True}}, "looks ahead"),
        ({"speculative_config": object()}, "speculative decoding"),
        ({"pipeline_parallel_size": 2}, "pipeline parallelism"),
        ({"decode_context_parallel_size": 2}, "context parallelism"),
        ({"prefill_context_parallel_size": 2}, "context parallelism"),
        ({"kv_load_failure_policy": "recompute"}, "recompute"),
    ],
)
def test_each_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        check_supported(*engine(**changes))


def test_attention_of_another_kind() -> None:
    from vllm.v1.kv_cache_interface import SlidingWindowSpec

    with pytest.raises(UnsupportedModelError, match="not full"):
        check_supported(*engine(spec=SlidingWindowSpec, attention={"sliding_window": 64}))
