"""Gists served by stock vLLM: the answers are those of GistModel.generate, token for token."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engines import KS, Served, params, random_model, serving

from gisting import GistModel
from gisting.store import GistKey

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
INSTRUCTIONS = ("Say it backwards.", "Everything costs nine coins. You are Nora and never laugh.")
INPUTS = ("a", "hello there, what does the boat cost today?")
ENGINES: dict[str, dict[str, Any]] = {
    "blocks of 32, prefix caching": {"block_size": 32},
    "blocks of 128, chunked prefill, no prefix caching": {
        "block_size": 128,
        "enable_prefix_caching": False,
        "max_num_batched_tokens": 24,
        "max_num_seqs": 8,
    },
    "preemption": {"block_size": 32, "num_gpu_blocks_override": 18, "disable_log_stats": False},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def model(folder: Path) -> GistModel:
    return random_model(folder / "model")


@pytest.fixture(scope="module", params=ENGINES)
def served(request: pytest.FixtureRequest, folder: Path, model: GistModel) -> Iterator[Served]:
    with serving(folder, model, **ENGINES[request.param]) as made:
        yield made


def test_a_mixed_batch_answers_as_generate_does(served: Served) -> None:
    requests, gists = [], []
    for k in KS:
        for instruction in INSTRUCTIONS:
            id, gist = served.compress(instruction, k)
            for text in INPUTS:
                requests.append(served.from_gist(id, k, text))
                gists.append(gist)
    for instruction in INSTRUCTIONS:
        requests.append(served.plain(instruction, INPUTS[1]))
        gists.append(None)
    wanted = [
        served.expected(prompt, gist) for (prompt, _), gist in zip(requests, gists, strict=True)
    ]
    assert served.answer(requests) == wanted
    assert (
        served.answer(requests[::-1]) == wanted[::-1]
    )  # from the prefix cache, where there is one
    assert len({tuple(ids) for ids in wanted}) > len(INPUTS) * len(KS)  # gists make a difference


@pytest.mark.parametrize("served", ["preemption"], indirect=True)
def test_requests_are_really_preempted(served: Served) -> None:
    id, gist = served.compress(INSTRUCTIONS[1], 33)
    requests = [served.from_gist(id, 33, f"{n} boats", max_tokens=60) for n in range(12)]
    wanted = [served.expected(prompt, gist, 60) for prompt, _ in requests]
    assert served.answer(requests) == wanted
    (counter,) = [one for one in served.llm.get_metrics() if one.name == "vllm:num_preemptions"]
    assert counter.value > 0


def test_vllm_compresses_as_transformers_does(served: Served) -> None:
    for number, k in enumerate(KS):
        instruction = f"Number {number}: say it " + "again and " * number + "again."
        asked, key = served.to_compress(instruction, k)
        served.answer([asked, served.plain(INSTRUCTIONS[0], INPUTS[0])])
        found, wanted = served.store.get(key), served.model.compress(instruction, num_gist_tokens=k)
        assert found is not None
        assert (found.provenance, found.model) == (wanted.provenance, wanted.model)
        for name, tensor in wanted.tensors.items():
            torch.testing.assert_close(found.tensors[name], tensor, atol=1e-4, rtol=0)
        request = served.from_gist(key.id, k, INPUTS[1])
        assert served.answer([request]) == [served.expected(request[0], wanted)]


def test_one_prompt_of_many_instructions_compressed_at_once(served: Served) -> None:
    asked = [served.to_compress(f"Speak of {n} boats and {n} cats. " * 3, 5) for n in range(6)]
    served.answer([request for request, _ in asked])
    for n, (_, key) in enumerate(asked):
        wanted = served.model.compress(f"Speak of {n} boats and {n} cats. " * 3, num_gist_tokens=5)
        found = served.store.get(key)
        assert found is not None
        for name, tensor in wanted.tensors.items():
            torch.testing.assert_close(found.tensors[name], tensor, atol=1e-4, rtol=0)


def test_other_gists_do_not_share_a_prefix_cache(served: Served) -> None:
    long = "x" * 70  # blocks of its own behind the placeholders
    ids = {name: served.compress(name, 5) for name in INSTRUCTIONS}
    for name in (*INSTRUCTIONS, *INSTRUCTIONS):
        id, gist = ids[name]
        request = served.from_gist(id, 5, long)
        assert served.answer([request]) == [served.expected(request[0], gist)]


def test_told_not_to_read_the_prefix_cache_the_gist_is_read_all_the_same(served: Served) -> None:
    id, gist = served.compress(INSTRUCTIONS[1], 5)
    request = served.from_gist(id, 5, INPUTS[0], skip_reading_prefix_cache=True)
    assert served.answer([request]) == [served.expected(request[0], gist)]


@pytest.mark.parametrize("fault", ["missing", "damaged", "logprobs", "prompt", "nonsense", "key"])
def test_a_bad_request_fails_alone(fault: str, served: Served) -> None:
    id, gist = served.compress(INSTRUCTIONS[0], 5)
    good = served.from_gist(id, 5, INPUTS[1])
    bad: Any
    if fault == "missing":
        bad = served.from_gist("0" * 64, 5, "a")
    elif fault == "damaged":
        id, _ = served.compress("To be damaged.", 5)
        path = Path(served.store.place) / "gists" / f"{id}.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.unlink()
        path.write_bytes(data)
        bad = served.from_gist(id, 5, "a")
    elif fault == "logprobs":
        bad = served.from_gist(id, 5, "a", prompt_logprobs=1)
    elif fault == "prompt":
        bad = ({"prompt_token_ids": [5, 6, 7, 8, 9, 10, 11]}, params({"gist": id}))
    elif fault == "nonsense":
        bad = ({"prompt_token_ids": [5, 6, 7]}, params({"gist": {"a": [1]}}))
    else:
        key = GistKey.of(served.model, "Poisoned.", 5)
        wanted = {"compress": key.to_json(), "instruction_sha256": "0" * 64}
        bad = ({"prompt_token_ids": [7, 8, 9, 10]}, params(wanted))
    first, failed, last = served.finish([good, bad, good])
    wanted_ids = served.expected(good[0], gist)
    assert [list(one.outputs[0].token_ids) for one in (first, last)] == [wanted_ids, wanted_ids]
    assert failed.outputs[0].finish_reason == "error"
    assert served.answer([good]) == [wanted_ids]  # the engine lives


def test_several_answers_from_one_gist(served: Served) -> None:
    id, gist = served.compress(INSTRUCTIONS[1], 16)
    prompt, sampling = served.from_gist(id, 16, INPUTS[0], n=3, temperature=1.0, top_k=1)
    (output,) = served.finish([(prompt, sampling)])
    wanted = served.expected(prompt, gist)
    assert [list(one.token_ids) for one in output.outputs] == [wanted] * 3


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kv_cache_dtype": "fp8"}, "fp8"),
        ({"transfer": {"kv_load_failure_policy": "recompute"}}, "recompute"),
    ],
)
def test_what_is_not_proved_is_refused_at_the_start(
    options: dict[str, Any], reason: str, folder: Path, model: GistModel
) -> None:
    with pytest.raises(Exception, match=reason), serving(folder, model, **options):
        pass


def test_a_sliding_window_is_refused_at_the_start(tmp_path: Path) -> None:
    from gisting.testing import tiny_gist_model

    made = tiny_gist_model(
        "mistral", hidden_size=128, num_attention_heads=2, num_key_value_heads=2, head_dim=64,
        sliding_window=64,
    )  # fmt: skip
    made.save_pretrained(tmp_path / "model")
    with pytest.raises(Exception, match="sliding"), serving(tmp_path, made):
        pass


def test_tensor_parallel(tmp_path: Path) -> None:
    """In a process of its own: vLLM reads where to put its ranks once."""
    script = Path(__file__).with_name("ranks.py")
    more = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env=os.environ | more,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == "equal"
