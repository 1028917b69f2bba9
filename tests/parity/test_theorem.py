"""The theorem, for every family of the table.

For any instruction and input, the logits computed from the cached gist equal those of the full
pass under the gist mask: in float32 within 1e-4, in batches that mix instruction lengths, input
lengths and numbers of gist tokens.
"""

import random

import pytest
import torch

from tests.parity.paths import (
    DECODERS,
    FAMILY_NAMES,
    TOLERANCE,
    adapter,
    cache_prompt,
    compress,
    draw,
    from_gist,
    gap,
    generate,
    masked,
    one_by_one,
    read,
    stepwise,
)

CORNERS = [(1, 1, 1), (300, 10, 64), (1, 10, 64), (300, 1, 1), (7, 2, 3), (60, 5, 30)]
RAGGED = [(7, 2, 5), (33, 2, 12), (1, 2, 1), (20, 2, 3)]

every_family = pytest.mark.parametrize("family", FAMILY_NAMES)
every_decoder = pytest.mark.parametrize("family", DECODERS)


def random_shapes(seed: int, rows: int) -> list[tuple[int, int, int]]:
    source = random.Random(seed)
    return [
        (source.randint(1, 300), source.choice([1, 2, 5, 10]), source.randint(1, 64))
        for _ in range(rows)
    ]


@every_family
@pytest.mark.parametrize("shapes", [CORNERS, random_shapes(1, 4)], ids=["corners", "random"])
def test_logits_from_the_gist_are_those_of_the_masked_pass(
    family: str, shapes: list[tuple[int, int, int]]
) -> None:
    rows = draw(0, shapes)
    assert gap(from_gist(adapter(family), rows), masked(adapter(family), rows)) < TOLERANCE


@every_family
def test_attention_decides_the_logits(family: str) -> None:
    """Else equality would prove nothing: each condition must give logits of its own."""
    rows = draw(1, RAGGED)
    ours = {c: masked(adapter(family), rows, c) for c in ("gist", "pos_control", "neg_control")}
    assert gap(ours["gist"], ours["pos_control"]) > 1e-2
    assert gap(ours["gist"], ours["neg_control"]) > 1e-2
    assert gap(ours["pos_control"], ours["neg_control"]) > 1e-2


@every_family
def test_greedy_tokens_are_those_of_masked_passes_step_by_step(family: str) -> None:
    rows = draw(2, RAGGED)
    ours = generate(adapter(family), rows, compress(adapter(family), rows), new=6)
    assert ours == stepwise(adapter(family), rows, new=6)
    assert len({tuple(tokens) for tokens in ours}) == len(rows)  # inputs and gists matter


@every_family
def test_a_batch_gives_what_each_row_gives_alone(family: str) -> None:
    rows = draw(3, RAGGED)
    model = adapter(family)
    assert gap(from_gist(model, rows), one_by_one(from_gist, model, rows)) < TOLERANCE
    assert gap(masked(model, rows), one_by_one(masked, model, rows)) < TOLERANCE


@every_family
def test_one_gist_serves_many_inputs(family: str) -> None:
    first, *others = draw(4, [(25, 2, n) for n in (4, 1, 9, 4)])
    rows = [first, *(type(first)(first.instruction, 2, r.input, r.target) for r in others)]
    model = adapter(family)
    gist = compress(model, [first])
    assert len(gist) == 1
    assert gap(read(model, rows, gist), masked(model, rows)) < TOLERANCE
    assert generate(model, rows, gist, new=4) == stepwise(model, rows, new=4)


@every_family
def test_without_a_prefix_the_model_answers_as_under_neg_control(family: str) -> None:
    rows = draw(5, RAGGED)
    assert (
        gap(read(adapter(family), rows, None), masked(adapter(family), rows, "neg_control"))
        < TOLERANCE
    )


@every_decoder
def test_the_full_prompt_cache_is_the_unmasked_pass(family: str) -> None:
    rows = draw(6, [(9, 2, 5), (50, 2, 12), (1, 2, 1)])
    model = adapter(family)
    cache = cache_prompt(model, rows)
    assert gap(read(model, rows, cache), masked(model, rows, "pos_control")) < TOLERANCE
    assert generate(model, rows, cache, new=4) == stepwise(model, rows, 4, "pos_control")


@every_decoder
def test_conditions_may_differ_from_row_to_row(family: str) -> None:
    rows = draw(7, [(9, 2, 5), (20, 1, 3), (4, 5, 7)])
    conditions = ("gist", "pos_control", "neg_control")
    each = [masked(adapter(family), [r], c)[0] for r, c in zip(rows, conditions, strict=True)]
    assert gap(masked(adapter(family), rows, conditions), each) < TOLERANCE  # type: ignore[arg-type]


def test_an_encoder_gist_needs_no_input_at_all() -> None:
    rows = draw(8, [(12, 2, 0), (5, 2, 4), (40, 2, 0)])
    assert gap(from_gist(adapter("t5"), rows), masked(adapter("t5"), rows)) < TOLERANCE
    rows = draw(9, [(12, 3, 0), (5, 1, 0)])  # nobody has an input
    assert gap(from_gist(adapter("t5"), rows), masked(adapter("t5"), rows)) < TOLERANCE


@every_family
def test_a_gist_is_the_same_whatever_batch_it_was_made_in(family: str) -> None:
    rows = draw(10, [(200, 2, 1), (3, 2, 1), (50, 2, 1)])
    together = compress(adapter(family), rows)
    for row, one in zip(rows, together, strict=True):
        alone = compress(adapter(family), [row])
        for name, tensor in one.tensors.items():
            torch.testing.assert_close(tensor, alone.tensors[name], rtol=1e-4, atol=1e-5)
