from random import Random

import pytest

from gistkit.data.collate import IGNORED, Batch, Collator, EncodedRows, Limits, fill_rows
from gistkit.prompts import EncodedExample, Example, InstructionTemplate, PromptEncoder
from gistkit.testing import tiny_gist_model

ROWS = [EncodedExample([1, 5, 6], [7, 8], [9, 2]), EncodedExample([1, 5], [7], [9, 9, 9, 2])]


def test_a_decoder_batch() -> None:
    batch = Collator(gist_id=3, pad_id=0, num_gist_tokens=(2,))(ROWS)
    assert batch["input_ids"].tolist() == [
        [1, 5, 6, 3, 3, 7, 8, 9, 2],
        [1, 5, 3, 3, 7, 9, 9, 9, 2],
    ]
    assert batch["labels"].tolist() == [
        [-100] * 7 + [9, 2],
        [-100] * 5 + [9, 9, 9, 2],
    ]
    assert batch["attention_mask"].tolist() == [[1] * 9, [1] * 9]
    assert batch["conditions"] == ["gist", "gist"]


def test_an_encoder_decoder_batch_is_padded_on_the_right() -> None:
    batch = Collator(gist_id=3, pad_id=0, encoder_decoder=True)(ROWS)
    assert batch["input_ids"].tolist() == [[1, 5, 6, 3, 7, 8], [1, 5, 3, 7, 0, 0]]
    assert batch["labels"].tolist() == [[9, 2, -100, -100], [9, 9, 9, 2]]
    assert batch["attention_mask"].tolist() == [[1] * 6, [1, 1, 1, 1, 0, 0]]


def test_cutting_never_takes_a_gist_silently(caplog: pytest.LogCaptureFixture) -> None:
    limits = Limits(source=3)
    collate = Collator(3, 0, (900,), limits=limits, encoder_decoder=True)
    nothing = collate(ROWS)  # the trainer goes on with the other batches of its step
    assert nothing["labels"].unique().tolist() == [IGNORED]
    assert nothing["input_ids"].shape == (1, 2)
    assert collate.lost == 2
    assert "too long to keep their gist" in caplog.text
    collate = Collator(gist_id=3, pad_id=0, limits=Limits(total=6))
    batch = collate(ROWS)
    assert batch["input_ids"].tolist() == [[1, 5, 3, 7, 9, 9]]
    assert collate.lost == 1


def test_draws_follow_the_seed_the_rows_and_the_weights() -> None:
    batches = [[EncodedExample([1, 5, i], [7, 8], [9, 2]), *ROWS * 50] for i in range(20)]

    def drawn_with(seed: int) -> list[Batch]:
        collate = Collator(3, 0, (1, 2, 4), {"gist": 0.9, "neg_control": 0.1}, seed=seed)
        return [collate(rows) for rows in batches]

    first, again, other = drawn_with(1), drawn_with(1), drawn_with(2)
    assert [b["conditions"] for b in first] == [b["conditions"] for b in again]
    assert [b["conditions"] for b in first] != [b["conditions"] for b in other]
    drawn = [name for batch in first for name in batch["conditions"]]
    assert 0.85 < drawn.count("gist") / len(drawn) < 0.95
    widths = {batch["input_ids"].shape[1] for batch in first}
    assert widths == {8, 9, 11}


def test_rows_without_an_output_are_left_out() -> None:
    model = tiny_gist_model("llama")
    template = InstructionTemplate("\nOutput:", separator="")
    encoder = PromptEncoder(model.tokenizer, template, model.gist_id)
    rows = EncodedRows([Example("Say it.", "a", "b"), Example("Say it.", "a", "")], encoder)
    assert (len(rows), rows.dropped) == (1, 1)


@pytest.mark.parametrize("seed", range(20))
def test_packed_rows_hold_every_item_once_and_are_filled_alike(seed: int) -> None:
    rng = Random(seed)
    lengths = [rng.randint(1, 120) for _ in range(rng.randint(1, 40))]
    rows = fill_rows(lengths, 128)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    sums = [sum(lengths[item] for item in row) for row in rows]
    assert max(sums) <= 128
    assert len(rows) <= 2 * -(-sum(lengths) // 128)


def test_few_rows_are_filled_evenly() -> None:
    rows = fill_rows([60, 50, 40, 30, 20, 10], 128)
    assert sorted(sum([60, 50, 40, 30, 20, 10][item] for item in row) for row in rows) == [100, 110]


def test_an_item_longer_than_a_row_stands_alone() -> None:
    assert fill_rows([300, 20, 30], 128) == [[0], [2, 1]]
