"""Reading a cache that is packed in a way nobody told, and turning keys to other positions."""

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from gistkit.errors import UnsupportedModelError
from gistkit.integrations.kv_cache import CacheLayout
from gistkit.models.families import FAMILIES, key_frequencies
from gistkit.models.kv_batch import CACHE
from gistkit.models.rotary import moved
from gistkit.testing import tiny_gist_model, tiny_model

BLOCK, HEADS, SIZE = 4, 2, 8


def packed(keys: Tensor, values: Tensor, cache: Tensor, slots: Tensor) -> None:
    """Keys by dimension, then head, then token; values the other way round, behind them."""
    for key, value, slot in zip(keys, values, slots.tolist(), strict=True):
        block = cache[slot // BLOCK].view(2, -1)
        block[0].view(SIZE, HEADS, BLOCK)[:, :, slot % BLOCK] = key.T
        block[1].view(BLOCK, HEADS, SIZE)[slot % BLOCK] = value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_written_is_read(dtype: torch.dtype) -> None:
    cache = torch.zeros(5, HEADS, BLOCK, 2 * SIZE, dtype=dtype)
    keys, values = torch.randn(2, 6, HEADS, SIZE).to(dtype)
    slots = torch.tensor([17, 3, 8, 9, 10, 0])
    packed(keys, values, cache, slots)
    layout = CacheLayout.probe(packed, cache, heads=HEADS, size=SIZE, block=BLOCK)
    found = layout.read(cache, slots)
    assert torch.equal(found[0], keys)
    assert torch.equal(found[1], values)


def test_a_cache_that_rounds_is_refused() -> None:
    def rounding(keys: Tensor, values: Tensor, cache: Tensor, slots: Tensor) -> None:
        packed(keys // 8 * 8, values // 8 * 8, cache, slots)

    with pytest.raises(UnsupportedModelError, match="cannot be read"):
        CacheLayout.probe(
            rounding, torch.zeros(1, HEADS, BLOCK, 2 * SIZE), heads=HEADS, size=SIZE, block=BLOCK
        )


def test_a_cache_that_forgets_is_refused() -> None:
    def forgetting(keys: Tensor, values: Tensor, cache: Tensor, slots: Tensor) -> None:
        packed(keys, keys, cache, slots)

    with pytest.raises(UnsupportedModelError, match="cannot be read"):
        CacheLayout.probe(
            forgetting, torch.zeros(1, HEADS, BLOCK, 2 * SIZE), heads=HEADS, size=SIZE, block=BLOCK
        )


@pytest.mark.parametrize("family", [name for name, row in FAMILIES.items() if row.keys_move])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    ],
    ids=["default", "linear", "llama3"],
)  # fmt: skip
def test_keys_read_from_position_0_on_become_those_of_compress(
    family: str, rope: dict[str, object]
) -> None:
    model = tiny_gist_model(family, rope_parameters=rope, num_gist_tokens=[3])
    ids = torch.tensor([model.encoder.instruction("Say it again and again and again.", 3)])
    cache = DynamicCache()
    model.hf_model(input_ids=ids, **{CACHE: cache})
    expected = model.compress("Say it again and again and again.")
    targets = torch.arange(3)
    for number, (keys, *_) in enumerate(cache):
        last = keys[0, :, -3:].transpose(0, 1)
        turned = moved(
            last, targets + ids.shape[1] - 3, targets, key_frequencies(model.hf_model.config)
        )
        wanted = expected.tensors[f"layers.{number}.keys"][0].transpose(0, 1)
        torch.testing.assert_close(turned, wanted, atol=1e-5, rtol=1e-5)


def test_other_rotary_embeddings_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="gpt_neox"):
        key_frequencies(tiny_model("gpt_neox").config)
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(UnsupportedModelError, match="dynamic"):
        key_frequencies(tiny_model("llama", rope_parameters=rope).config)
