"""Gists served by stock vLLM: the answers are those of GistModel.generate, token for token."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gistkit import GistModel
from gistkit.gist import Gist
from tests.integrations.engines import KS, Request, Served, params, serving

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

INSTRUCTIONS = ("Say it backwards.", "Everything costs nine coins. You are Nora and never laugh.")
INPUTS = ("a", "hello there, what does the boat cost today?")
ENGINES: dict[str, dict[str, Any]] = {
    "blocks of 32, prefix caching": {"block_size": 32},
    "blocks of 128, prefix caching, compiled": {"block_size": 128, "enforce_eager": False},
    "blocks of 128, chunked prefill, no prefix caching": {
        "block_size": 128,
        "enable_prefix_caching": False,
        "max_num_batched_tokens": 24,
        "max_num_seqs": 8,
    },
    "preemption": {
        "block_size": 32,
        "num_gpu_blocks_override": 18,
        "max_num_batched_tokens": 64,
        "max_num_seqs": 16,
        "disable_log_stats": False,
    },
}


@pytest.fixture(scope="module", params=ENGINES)
def served(request: pytest.FixtureRequest, folder: Path, model: GistModel) -> Iterator[Served]:
    with serving(folder, model, **ENGINES[request.param]) as made:
        yield made


def mixed(served: Served, **sampling: Any) -> tuple[list[Request], list[Gist | None]]:
    """Every k, two gists of each, two inputs, and prompts without a gist."""
    requests, gists = [], []
    for k in KS:
        for instruction in INSTRUCTIONS:
            id, gist = served.compress(instruction, k)
            for text in INPUTS:
                requests.append(served.from_gist(id, k, text, **sampling))
                gists.append(gist)
    for instruction in INSTRUCTIONS:
        requests.append(served.plain(instruction, INPUTS[1], **sampling))
        gists.append(None)
    return requests, gists


def preemptions(served: Served) -> int:
    metrics = served.llm.get_metrics()
    return sum(int(one.value) for one in metrics if one.name == "vllm:num_preemptions")


def test_a_mixed_batch_answers_as_transformers_does(served: Served) -> None:
    requests, gists = mixed(served)
    wanted = [
        served.expected(prompt, gist) for (prompt, _), gist in zip(requests, gists, strict=True)
    ]
    assert served.answer(requests) == wanted
    # once more, from the prefix cache where there is one
    assert served.answer(requests[::-1]) == wanted[::-1]
    assert len({tuple(ids) for ids in wanted}) > len(INPUTS) * len(KS)  # gists make a difference


def test_the_texts_are_those_of_generate(served: Served) -> None:
    """Ends of answers, and decoding, too."""
    requests, gists = mixed(served, ignore_eos=False, max_tokens=24)
    texts = [*INPUTS] * len(KS) * len(INSTRUCTIONS)
    answers = [output.outputs[0].text for output in served.finish(requests)]
    wanted = [
        served.model.generate(text, gist, max_new_tokens=24)[0]
        for text, gist in zip(texts, gists, strict=False)
    ]
    assert answers[: len(wanted)] == wanted
    short = served.finish([served.from_gist("0" * 64, 1, "a")])  # the comparison can fail
    assert short[0].outputs[0].text not in wanted


def test_another_gist_or_none_answers_differently(served: Served) -> None:
    """Negative controls, by probabilities too: one gist token of random weights moves little."""
    for k in KS:
        (one, first), (other, _) = (served.compress(name, k) for name in INSTRUCTIONS)
        prompt, sampling = served.from_gist(one, k, INPUTS[1], logprobs=1)
        alone = {"prompt_token_ids": prompt["prompt_token_ids"][k:]}
        outputs = served.finish(
            [
                (prompt, sampling),
                (prompt, params({"gist": other}, logprobs=1)),
                (prompt, params(None, logprobs=1)),  # placeholders read as text
                (alone, params(None, logprobs=1)),
            ]
        )
        answers = [list(output.outputs[0].token_ids) for output in outputs]
        found = [output.outputs[0].cumulative_logprob for output in outputs]
        assert answers[0] == served.expected(prompt, first)
        assert found[0] == pytest.approx(logprob(served, prompt, first, answers[0]), abs=1e-3)
        assert min(abs(found[0] - other) for other in found[1:]) > 1e-2
        assert k == 1 or answers[0] not in answers[1:]


@torch.no_grad()
def logprob(served: Served, prompt: dict[str, Any], gist: Gist, answer: list[int]) -> float:
    """Of the whole answer, by transformers."""
    model = served.model
    ids = torch.tensor([[*prompt["prompt_token_ids"][gist.num_tokens :], *answer]])
    logits = model.adapter.read(ids, torch.ones_like(ids), gist, gist_id=model.gist_id).logits
    told = logits[0, -len(answer) - 1 : -1].log_softmax(-1)
    return float(told.gather(1, torch.tensor(answer)[:, None]).sum())


@pytest.mark.parametrize("served", ["preemption"], indirect=True)
def test_requests_are_really_preempted(served: Served) -> None:
    id, gist = served.compress(INSTRUCTIONS[1], 33)
    requests = [served.from_gist(id, 33, f"{n} boats", max_tokens=60) for n in range(12)]
    wanted = [served.expected(prompt, gist, 60) for prompt, _ in requests]
    before = preemptions(served)
    assert served.answer(requests) == wanted
    assert preemptions(served) > before


@pytest.mark.parametrize("served", ["preemption"], indirect=True)
def test_instructions_lose_their_blocks_before_they_are_read_to_the_end(served: Served) -> None:
    """Long ones, read in pieces while answers grow into their room; then from the start again."""
    id, gist = served.compress(INSTRUCTIONS[1], 5)
    answers = [served.from_gist(id, 5, f"{n} boats", max_tokens=90) for n in range(5)]
    texts = [f"Speak of {n} boats and of {n} cats. " * 10 for n in range(2)]
    asked = [served.to_compress(text, 33) for text in texts]
    before = preemptions(served)
    found = served.answer([*answers, *(request for request, _ in asked)])
    assert preemptions(served) > before
    assert found[:5] == [served.expected(prompt, gist, 90) for prompt, _ in answers]
    for text, (_, key) in zip(texts, asked, strict=True):
        check_gist(served.store.get(key), served.model.compress(text, num_gist_tokens=33))


def test_vllm_compresses_as_transformers_does(served: Served) -> None:
    for number, k in enumerate(KS):
        instruction = f"Number {number}: say it " + "again and " * number + "again."
        asked, key = served.to_compress(instruction, k)
        served.answer([asked, served.plain(INSTRUCTIONS[0], INPUTS[0])])
        found, wanted = served.store.get(key), served.model.compress(instruction, num_gist_tokens=k)
        assert found is not None
        assert (found.provenance, found.model) == (wanted.provenance, wanted.model)
        check_gist(found, wanted)
        request = served.from_gist(key.id, k, INPUTS[1])
        assert served.answer([request]) == [served.expected(request[0], wanted)]


def test_many_instructions_compressed_at_once(served: Served) -> None:
    asked = [served.to_compress(f"Speak of {n} boats and {n} cats. " * 3, 5) for n in range(6)]
    served.answer([request for request, _ in asked])
    for n, (_, key) in enumerate(asked):
        text = f"Speak of {n} boats and {n} cats. " * 3
        check_gist(served.store.get(key), served.model.compress(text, num_gist_tokens=5))


def test_an_instruction_that_the_prefix_cache_knows(served: Served) -> None:
    """Its blocks were read by a request that asked for no gist."""
    text = "Speak of boats and of cats. " * 4
    asked, key = served.to_compress(text, 5)
    served.answer([(asked[0], params(None))])
    served.answer([asked])
    check_gist(served.store.get(key), served.model.compress(text, num_gist_tokens=5))


def test_several_answers_from_one_gist(served: Served) -> None:
    id, gist = served.compress(INSTRUCTIONS[1], 16)
    prompt, sampling = served.from_gist(id, 16, INPUTS[0], n=3, temperature=1.0, top_k=1)
    (output,) = served.finish([(prompt, sampling)])
    wanted = served.expected(prompt, gist)
    assert [list(one.token_ids) for one in output.outputs] == [wanted] * 3


@pytest.mark.parametrize("heads", [2, 1], ids=["a head each", "one head for both"])
def test_tensor_parallel(heads: int, tmp_path: Path) -> None:
    """In a process of its own: vLLM reads where to put its ranks once."""
    more = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.integrations.ranks", str(tmp_path), str(heads)],
        cwd=Path(__file__).parents[2],
        env=os.environ | more,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == "equal"


def check_gist(found: Gist | None, wanted: Gist) -> None:
    """Within 1e-4, the bar for float32."""
    assert found is not None
    assert found.tensors.keys() == wanted.tensors.keys()
    for name, tensor in wanted.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, atol=1e-4, rtol=0)
