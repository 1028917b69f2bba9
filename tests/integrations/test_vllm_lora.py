"""A gist made with an adapter is served with it, and with nothing else.

One request at a time: in a batch of both kinds, vLLM 0.32 on the CPU gives wrong answers to those
without an adapter, whether they have a gist or not.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from gistkit import GistModel
from gistkit.store import GistKey
from tests.integrations.engines import Served, params, random_model, serving

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

INSTRUCTION, TEXT = "Say it backwards, with a name.", "hello there, what does it cost?"
RANK, ALPHA = 4, 8
TARGETS = ("q_proj", "v_proj")


@torch.no_grad()
def adapt(model: GistModel, folder: Path) -> None:
    """Write a LoRA of random matrices, and put it into the weights of `model`."""
    generator = torch.Generator().manual_seed(7)
    tensors = {}
    for number, layer in enumerate(model.hf_model.base_model.layers):
        for name in TARGETS:
            weight = layer.self_attn.get_submodule(name).weight
            down = torch.randn(RANK, weight.shape[1], generator=generator) / weight.shape[1] ** 0.5
            up = torch.randn(weight.shape[0], RANK, generator=generator)
            place = f"base_model.model.model.layers.{number}.self_attn.{name}"
            tensors |= {f"{place}.lora_A.weight": down, f"{place}.lora_B.weight": up}
            weight += ALPHA / RANK * up @ down
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": list(TARGETS),
        "base_model_name_or_path": "base",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    model.weights_changed()


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Served, Any]]:
    """The engine with its base, the same with the merged model, and the adapter for requests."""
    from vllm.lora.request import LoRARequest

    folder = tmp_path_factory.mktemp("lora")
    base, merged = random_model(folder / "model"), random_model(folder / "merged")
    adapt(merged, folder / "polite")
    with serving(
        folder,
        base,
        block_size=32,
        enable_lora=True,
        max_lora_rank=8,
        connector={"adapters": {"polite": merged.fingerprint}},
    ) as served:
        other = Served(served.llm, merged, served.store)
        yield served, other, LoRARequest("polite", 1, str(folder / "polite"))


def ids_of(outputs: list[Any]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_each_with_its_own(adapted: tuple[Served, Served, Any]) -> None:
    base, merged, lora = adapted
    (one, gist), (two, other) = base.compress(INSTRUCTION, 5), merged.compress(INSTRUCTION, 5)
    requests = [
        base.from_gist(one, 5, TEXT),
        base.from_gist(two, 5, TEXT),
        base.plain(INSTRUCTION, TEXT),
        base.plain(INSTRUCTION, TEXT),
    ]
    wanted = [
        base.expected(requests[0][0], gist),
        merged.expected(requests[1][0], other),
        base.expected(requests[2][0], None),
        merged.expected(requests[3][0], None),
    ]
    assert len({tuple(ids) for ids in wanted}) == 4
    for _ in range(2):  # the second time from the prefix cache
        for request, adapter, ids in zip(requests, [None, lora, None, lora], wanted, strict=True):
            assert ids_of(base.finish([request], [adapter])) == [ids]


def test_never_with_another(adapted: tuple[Served, Served, Any]) -> None:
    base, merged, lora = adapted
    (one, gist), (two, _) = base.compress(INSTRUCTION, 5), merged.compress(INSTRUCTION, 5)
    from vllm.lora.request import LoRARequest

    unheard = LoRARequest("unheard of", 2, lora.lora_path)
    good = base.from_gist(one, 5, TEXT)
    refused = [
        (base.from_gist(one, 5, TEXT), lora),
        (base.from_gist(two, 5, TEXT), None),
        (base.from_gist(two, 5, TEXT), unheard),
    ]
    for request, adapter in refused:
        (failed,) = base.finish([request], [adapter])
        assert failed.outputs[0].finish_reason == "error"
    assert ids_of(base.finish([good], [None])) == [base.expected(good[0], gist)]


def test_vllm_does_not_compress_with_it(adapted: tuple[Served, Served, Any]) -> None:
    """It would take <GIST> from the base, whatever the adapter's training made of it."""
    base, merged, lora = adapted
    (prompt, sampling), key = merged.to_compress("Not by vLLM.", 5)
    (failed,) = base.finish([(prompt, sampling)], [lora])
    assert failed.outputs[0].finish_reason == "error"
    assert base.store.get(key) is None
    assert GistKey.of(merged.model, "Not by vLLM.", 5) == key
    plain = base.finish([(prompt, params(None, max_tokens=1))], [lora])
    assert plain[0].outputs[0].finish_reason == "length"
