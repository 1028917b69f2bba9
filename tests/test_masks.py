"""Each condition's docstring draws its mask; dense and block masks come from one definition."""

import inspect
import re

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from gistkit import masks
from gistkit.conditions import AFTER, BEFORE, CONDITIONS, GIST
from gistkit.errors import GistkitError, MaskError, OptionError

TOKENS = {"a": 3, "b": 4, "G": 9, "x": 5, "y": 6}
ROW = "a b G G x y"


def ids(*rows: str) -> Tensor:
    """Rows of letters, G for the gist and 0 for padding."""
    return torch.tensor([[TOKENS.get(t, 0) for t in row.split()] for row in rows])


def rendered(row: str, condition: str, *, causal: bool = True) -> Tensor:
    labels = masks.relabel(masks.segments(ids(row), TOKENS["G"]), condition)
    function = masks.attends(labels)
    if causal:
        function = masks.both(function, masks.causal)
    return masks.dense(function, 1, labels.shape[1], labels.shape[1])[0, 0]


def drawing(condition: str) -> str:
    """The matrix in the docstring, without the names of rows and columns."""
    text = inspect.getdoc(CONDITIONS[condition].relabel)
    assert text is not None
    rows = re.findall(r"^ *[abGxy] ((?:[1.] ?)+)$", text, flags=re.MULTILINE)
    return "\n".join(row.strip() for row in rows)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_docstring_draws_the_mask(condition: str) -> None:
    assert ROW in str(CONDITIONS[condition].relabel.__doc__)
    assert len(drawing(condition).splitlines()) == 6
    assert masks.render(rendered(ROW, condition)) == drawing(condition)


def test_an_encoder_reads_both_ways() -> None:
    assert masks.render(rendered("a b G x y", "gist", causal=False)) == (
        "1 1 1 . .\n1 1 1 . .\n1 1 1 . .\n. . 1 1 1\n. . 1 1 1"
    )
    assert masks.render(rendered("a b G x y", "neg_control", causal=False)) == (
        "1 1 1 . .\n1 1 1 . .\n1 1 1 . .\n. . . 1 1\n. . . 1 1"
    )
    assert rendered("a b G x y", "pos_control", causal=False).all()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("a b G G x y", [BEFORE, BEFORE, GIST, GIST, AFTER, AFTER]),
        ("G a b", [GIST, AFTER, AFTER]),
        ("a b G", [BEFORE, BEFORE, GIST]),
        ("G G", [GIST, GIST]),
        ("a b x", [AFTER, AFTER, AFTER]),
        ("a", [AFTER]),
    ],
)
def test_segments(row: str, expected: list[int]) -> None:
    assert masks.segments(ids(row), TOKENS["G"]).tolist() == [expected]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_row_without_a_gist_is_not_masked(condition: str) -> None:
    assert rendered("a b x y", condition, causal=False).all()


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("row", ["a b G", "G a b", "G"])
def test_a_gist_at_either_end(row: str, condition: str) -> None:
    mask = rendered(row, condition)
    assert mask.diagonal().all()  # nobody is left with nothing to see
    if row.endswith("G"):
        assert masks.render(mask) == masks.render(torch.ones_like(mask).tril())


def test_rows_are_labelled_one_by_one() -> None:
    labels = masks.segments(ids("a G x y", "x y a b", "a b G G"), TOKENS["G"])
    assert labels.tolist() == [[0, 1, 2, 2], [2, 2, 2, 2], [0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a G x G y"], r"row 0: gist tokens at positions \[1, 3\]"),
        (["a G x x y", "G x G G y"], r"row 1: gist tokens at positions \[0, 2, 3\]"),
        (["G a b x G"], r"row 0: gist tokens at positions \[0, 4\]"),  # not a wrapped span
    ],
)
def test_a_broken_span_names_row_and_positions(rows: list[str], message: str) -> None:
    with pytest.raises(MaskError, match=message) as error:
        masks.segments(ids(*rows), TOKENS["G"])
    assert isinstance(error.value, GistkitError)
    assert "\n" not in str(error.value)


def test_an_unknown_condition_is_refused() -> None:
    with pytest.raises(OptionError, match="unknown condition 'all'; choose one of gist, pos_con"):
        masks.relabel(torch.zeros(1, 1), "all")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_padding_is_seen_by_nobody_and_changes_nothing_else(side: str, condition: str) -> None:
    rows = {"left": "0 0 a b G x y", "right": "a b G x y 0 0"}
    batch = ids(rows[side])
    labels = masks.relabel(masks.segments(batch, TOKENS["G"]), condition)
    seen = masks.both(masks.attends(labels), masks.causal, masks.visible((batch != 0).long()))
    mask = masks.dense(seen, 1, 7, 7)[0, 0]
    real = batch[0] != 0
    assert not mask[:, ~real].any()
    assert torch.equal(mask[real][:, real], rendered("a b G x y", condition))


def test_tokens_made_since_count_as_after() -> None:
    """A mask of 4 labels asked about 6 columns: generation went on."""
    labels = masks.segments(ids("a G x y"), TOKENS["G"])
    longer = masks.dense(masks.attends(labels), 1, 6, 6)
    known = masks.segments(ids("a G x y x x"), TOKENS["G"])
    assert torch.equal(longer, masks.dense(masks.attends(known), 1, 6, 6))


def test_what_a_decoder_sees_of_an_encoder() -> None:
    batch = ids("a b G x 0 0", "a b x y a b", "a G 0 0 0 0")
    labels, padding = masks.segments(batch, TOKENS["G"]), (batch != 0).long()

    def seen(condition: str) -> list[list[int]]:
        rows: list[list[int]] = masks.cross_attention(
            masks.relabel(labels, condition), padding
        ).tolist()
        return rows

    assert seen("gist") == [[0, 0, 1, 1, 0, 0], [1] * 6, [0, 1, 0, 0, 0, 0]]
    assert seen("pos_control") == padding.tolist()
    assert seen("neg_control") == [[0, 0, 0, 1, 0, 0], [1] * 6, [0] * 6]


RAGGED = ("a b G G x y a b", "0 0 a G x y x y", "a b x y a b x y", "G a b x y 0 0 0")


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("causal", [True, False])
def test_the_block_mask_is_the_dense_mask(condition: str, causal: bool) -> None:
    batch = ids(*RAGGED)
    labels = masks.relabel(masks.segments(batch, TOKENS["G"]), condition)
    function = masks.both(masks.attends(labels), masks.visible((batch != 0).long()))
    if causal:
        function = masks.both(function, masks.causal)
    block = masks.block(function, 4, 8, 8)
    assert block.shape == (4, 1, 8, 8)
    assert torch.equal(cells(block), masks.dense(function, 4, 8, 8))


def test_blocks_that_nobody_sees_are_skipped() -> None:
    """What flex attention gains: whole blocks of the instruction are never read by the output."""
    row = torch.full((1, 512), TOKENS["x"])
    row[0, 250:252] = TOKENS["G"]
    labels = masks.segments(row, TOKENS["G"])
    block = masks.block(masks.both(masks.attends(labels), masks.causal), 1, 512, 512)
    assert block.to_dense()[0, 0].tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],  # queries 256..383 see nothing of columns 0..127
        [0, 1, 1, 1],
    ]


def cells(block: "masks.BlockMask") -> Tensor:
    """A block mask cell by cell, as its kernel reads it: kept blocks, then the predicate."""
    batch, heads, queries, keys = block.shape
    size_q, size_k = block.BLOCK_SIZE
    kept = block.to_dense().bool()
    kept = kept.repeat_interleave(size_q, -2).repeat_interleave(size_k, -1)
    b = torch.arange(batch).view(-1, 1, 1, 1)
    q, k = torch.arange(queries).view(1, 1, -1, 1), torch.arange(keys).view(1, 1, 1, -1)
    inside = block.mask_mod(b, torch.zeros_like(b), q, k)
    return inside & kept[..., :queries, :keys].expand(batch, heads, queries, keys)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("condition", CONDITIONS)
def test_flex_attention_computes_what_sdpa_does(condition: str) -> None:
    batch = ids(*(row + " x y" * 28 for row in RAGGED[:3]))
    labels = masks.relabel(masks.segments(batch, TOKENS["G"]), condition)
    function = masks.both(masks.attends(labels), masks.causal, masks.visible((batch != 0).long()))
    rows, length = batch.shape
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(rows, 2, length, 16, generator=generator) for _ in range(3))
    attend = torch.compile(flex_attention)
    ours = attend(q, k, v, block_mask=masks.block(function, rows, length, length))
    dense = masks.dense(function, rows, length, length)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense)
    real = (batch != 0)[:, None, :, None].expand_as(ours)
    torch.testing.assert_close(ours[real], theirs[real], rtol=1e-4, atol=1e-5)
