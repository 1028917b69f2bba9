"""The comparison can fail: each way a cache can be wrong shows far above the tolerance."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gistkit.gist import Gist
from gistkit.models import decoder, encoder_decoder
from gistkit.models.decoder import DecoderAdapter
from tests.parity.paths import (
    FAMILY_NAMES,
    TOLERANCE,
    adapter,
    as_prefix,
    compress,
    draw,
    from_gist,
    gap,
    masked,
    pad,
    read,
)

WRONG = 1e-2
ROWS = draw(60, [(20, 2, 5), (7, 2, 5)])


def gists_at(first: int) -> Gist:
    """The gists of ROWS, made as if they stood at positions `first` .. first + 1."""
    model = adapter("llama")
    assert isinstance(model, DecoderAdapter)
    ids, padding = pad([row.prompt for row in ROWS], "left")
    positions = torch.arange(ids.shape[1]).expand(ids.shape) + first + 2 - ids.shape[1]
    with torch.no_grad():
        return as_prefix(Gist, model._keep(ids, padding, positions, 2), [2, 2])


@pytest.mark.parametrize("shift", [-1, 1, 7])
def test_a_gist_at_other_positions(shift: int) -> None:
    assert (
        gap(read(adapter("llama"), ROWS, gists_at(0)), masked(adapter("llama"), ROWS)) < TOLERANCE
    )
    broken = read(adapter("llama"), ROWS, gists_at(shift))
    assert gap(broken, masked(adapter("llama"), ROWS)) > WRONG


def test_a_shift_of_everything_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary attention sees only differences; that is why gists may sit at 0 .. k-1."""
    counted = decoder.count_positions
    monkeypatch.setattr(decoder, "count_positions", lambda padding: counted(padding) + 7)
    shifted = read(adapter("llama"), ROWS, gists_at(7))
    monkeypatch.undo()
    assert gap(shifted, masked(adapter("llama"), ROWS)) < TOLERANCE


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "t5"])
def test_rows_in_the_wrong_order(family: str) -> None:
    gist = compress(adapter(family), ROWS)
    swapped = Gist.stack([gist[1], gist[0]])
    assert gap(read(adapter(family), ROWS, swapped), masked(adapter(family), ROWS)) > WRONG


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_tensor_of_a_gist_matters(family: str) -> None:
    gist = compress(adapter(family), ROWS)
    expected = masked(adapter(family), ROWS)
    for name, tensor in gist.tensors.items():
        broken = replace(gist, tensors={**gist.tensors, name: torch.zeros_like(tensor)})
        assert gap(read(adapter(family), ROWS, broken), expected) > WRONG, name


@pytest.mark.parametrize(("family", "home"), [("llama", decoder), ("t5", encoder_decoder)])
def test_one_column_of_the_instruction_leaks(
    family: str, home: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = home.relabelled

    def leaky(ids: Tensor, *rest: Any) -> Tensor:
        labels: Tensor = whole(ids, *rest).clone()
        last = (labels == 0).long().cumsum(-1).argmax(-1)  # the instruction's last token
        labels[torch.arange(len(labels)), last] = 1
        return labels

    monkeypatch.setattr(home, "relabelled", leaky)
    assert gap(from_gist(adapter(family), ROWS), masked(adapter(family), ROWS)) > WRONG


def test_t5_padding_between_gist_and_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """T5's bias counts columns, so gist and input must be neighbours."""
    monkeypatch.setattr(encoder_decoder, "align_left", lambda ids, padding: (ids, padding))
    rows = draw(61, [(9, 2, 5), (9, 2, 12)])
    assert gap(from_gist(adapter("t5"), rows), masked(adapter("t5"), rows)) > WRONG
