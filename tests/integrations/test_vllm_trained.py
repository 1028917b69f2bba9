"""The shipped model through vLLM: answers are right, not only the same."""

from collections.abc import Iterator

import pytest

from gistkit import GistModel
from gistkit.data import tasks
from gistkit.metrics import exact_match
from tests.integrations.engines import Served, serving

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ROWS = 40


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """In float32, as GistModel reads it; its heads are of 32."""
    folder = tmp_path_factory.mktemp("trained")
    GistModel.from_pretrained().save_pretrained(folder / "model")
    model = GistModel.from_pretrained(folder / "model")
    with serving(folder, model, block_size=32) as made:
        yield made


@pytest.mark.parametrize("k", [1, 4, 8])
def test_held_out_instructions_compressed_and_answered_by_vllm(k: int, served: Served) -> None:
    examples = tasks.generate("reply", "validation_unseen", n=ROWS, seed=5, difficulty=2)
    wanted = [example.output for example in examples]
    ids = []
    for example in examples:
        asked, key = served.to_compress(example.instruction, k)
        served.answer([asked])
        ids.append(key.id)

    def answer(ids: list[str]) -> list[str]:
        requests = [
            served.from_gist(id, k, example.input, ignore_eos=False, max_tokens=48)
            for id, example in zip(ids, examples, strict=True)
        ]
        return [output.outputs[0].text.strip() for output in served.finish(requests)]

    answers = answer(ids)
    by_us = [
        served.model.generate(
            example.input,
            served.model.compress(example.instruction, num_gist_tokens=k),
            max_new_tokens=48,
        )[0].strip()
        for example in examples
    ]
    assert answers == by_us
    assert exact_match(answers, wanted) >= 90
    assert exact_match(answer([*ids[1:], ids[0]]), wanted) < 20  # another's gist is no help
