"""FLOPs by torch's counter are those of the formula; peak memory is what is allocated at once."""

import pytest
import torch

from gistkit.benchmark.costs import MLP_MATRICES, count_flops, peak_bytes, prefill_flops
from gistkit.benchmark.sweep import random_prompts
from gistkit.models.families import FAMILIES
from gistkit.testing import tiny_gist_model

MEBI = 2**20
EXPERTS = {"mixtral", "qwen3_moe"}


def test_every_dense_family_has_a_formula() -> None:
    assert {*MLP_MATRICES, "t5"} == set(FAMILIES) - EXPERTS


@pytest.mark.parametrize("family", FAMILIES)
def test_counter_and_formula_agree(family: str) -> None:
    model = tiny_gist_model(family)
    prompts = random_prompts(model, 3, 20, 7, 2, seed=0)
    for mode in prompts.modes:
        prefix = prompts.prepare(mode)
        cached = 0 if prefix is None else prefix.num_tokens
        new = 29 if prefix is None else 7
        counted = count_flops(lambda prefix=prefix: prompts.read(prefix))  # type: ignore[misc]
        expected = prefill_flops(model.hf_model, 3, new, cached)
        assert expected == (None if family in EXPERTS else counted)
        assert counted > 0


def test_a_window_that_binds_has_no_formula() -> None:
    model = tiny_gist_model("mistral", sliding_window=16)
    assert prefill_flops(model.hf_model, 1, 17, 0) is None
    assert prefill_flops(model.hf_model, 1, 8, 8) is not None


def filled(mebibytes: int) -> torch.Tensor:
    return torch.zeros(mebibytes * MEBI // 4)


def test_the_peak_is_what_lives_at_once() -> None:
    held = filled(8)

    def one_after_the_other() -> None:
        filled(4)
        filled(4)

    def together() -> None:
        first, second = filled(4), filled(4)
        assert len(first) == len(second)

    cpu = torch.device("cpu")
    for work, expected in ((one_after_the_other, 4), (together, 8), (lambda: None, 0)):
        found = peak_bytes(work, cpu)
        assert found is not None
        assert abs(found - expected * MEBI) < 0.01 * MEBI
    assert len(held) > 0
    assert peak_bytes(together, torch.device("meta")) is None
