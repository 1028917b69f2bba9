"""FLOPs by torch's counter are those of the formula, to the last one."""

import pytest

from gistkit.benchmark.flops import count_flops, prefill_flops
from gistkit.benchmark.sweep import random_prompts
from gistkit.models.families import FAMILIES
from gistkit.testing import tiny_gist_model

EXPERTS = {"mixtral", "qwen3_moe"}


def test_every_dense_family_has_a_formula() -> None:
    dense = {name for name, row in FAMILIES.items() if row.mlp_matrices}
    assert dense | {"t5"} == set(FAMILIES) - EXPERTS


@pytest.mark.parametrize("family", FAMILIES)
def test_counter_and_formula_agree(family: str) -> None:
    model = tiny_gist_model(family)
    prompts = random_prompts(model, 3, 20, 7, 2, seed=0)
    for way in prompts.ways:
        prefix = prompts.make(way)
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
