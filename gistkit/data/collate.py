"""From encoded rows to a training batch: gist span, truncation, packing or padding, labels.

    TrainingRows ── sampler ──> rows ── Collator ──> Batch ── Adapter.labelled ──> loss

With packing, examples are concatenated into as few long rows as hold them, and the mask keeps them
apart: the same loss and gradients, without padding.

k and the condition are drawn here, so one checkpoint can learn several. A draw follows from the
seed and the batch's own rows, so neither prefetching nor workers nor resuming can change it. Knows
nothing about masks: the batch says which condition each row has, the adapter renders it.

Shapes: B batch, S sequence, T target.
"""

import logging
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NotRequired, TypedDict

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gistkit.errors import DataError
from gistkit.prompts import EncodedExample, Example, PromptEncoder, check_example

IGNORED = -100
log = logging.getLogger(__name__)


class Batch(TypedDict):
    """What a training step reads. `labels` is [B, S]; for an encoder-decoder [B, T].

    `conditions` has one for each example. If examples are packed, `documents` [B, S] says which
    example a token belongs to, -1 at padding, and `label_documents` [B, T] the same for an
    encoder-decoder's labels.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    conditions: list[str]
    documents: NotRequired[Tensor]
    label_documents: NotRequired[Tensor]


@dataclass(frozen=True, slots=True)
class Limits:
    """Longest sequences in tokens, as published.

    A decoder's row (prompt and completion) is cut at `total`; an encoder's at `source`, its target
    at `target`. Human-written references are longer, so their splits get longer limits.
    """

    total: int = 512
    source: int = 128
    target: int = 256

    @classmethod
    def for_split(cls, split: str) -> "Limits":
        """Published limits: 768 | 384 | 384 if the split's name contains "human"."""
        return cls(768, 384, 384) if "human" in split else cls()


class EncodedRows(torch.utils.data.Dataset[EncodedExample]):
    """Training rows as ids, encoded once. Rows without an output are left out and counted."""

    def __init__(self, examples: Sequence[Example], encoder: PromptEncoder) -> None:
        rows = encoder.examples(examples)
        self.rows = [row for row in rows if row is not None]
        self.dropped = len(rows) - len(self.rows)
        if self.dropped:
            log.warning("%d of %d rows left out: empty output", self.dropped, len(rows))
        if not self.rows:
            raise DataError("no row has an output to learn from; give other data")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> EncodedExample:
        return self.rows[index]

    @property
    def lengths(self) -> list[int]:
        return [len(r.instruction) + len(r.input) + len(r.completion) for r in self.rows]


class TrainingRows(torch.utils.data.Dataset[Example]):
    """Training rows as text, checked once and encoded batch by batch (`encode_and`).

    So a run starts immediately, and memory holds text only. Raises PromptError, naming the row.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        for number, row in enumerate(examples):
            check_example(row, number)
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]

    @property
    def lengths(self) -> list[int]:
        """Characters of each row, for batching by length."""
        return [len(r.instruction) + len(r.input) + len(r.output) for r in self.examples]


def encode_and(collate: "Collator", encoder: PromptEncoder) -> Callable[[list[Example]], Batch]:
    """The collator for rows of text; rows without an output are left out."""

    def run(rows: list[Example]) -> Batch:
        return collate([row for row in encoder.examples(rows) if row is not None])

    return run


@dataclass
class Collator:
    """Makes batches for decoder-only models, or for encoder-decoders.

    A row is cut on the right, as published. The published trainer kept rows whose gist had been
    cut off; here they are left out and counted.

    Attributes:
        num_gist_tokens: the k to draw from, one for each batch.
        conditions: weight of each condition, drawn for each row.
        pack: examples share rows of up to this many tokens (a longer example has its own row); None
            pads each example to the longest.
        lost: rows left out because cutting would have removed their gist or their whole output.
    """

    gist_id: int
    pad_id: int
    num_gist_tokens: Sequence[int] = (1,)
    conditions: Mapping[str, float] = field(default_factory=lambda: {"gist": 1.0})
    limits: Limits = field(default_factory=Limits)
    encoder_decoder: bool = False
    pack: int | None = None
    seed: int = 0
    lost: int = 0

    def __call__(self, rows: Sequence[EncodedExample]) -> Batch:
        """One batch; if no row is left after cutting, one without labels, which teaches nothing.

        The Trainer continues with the other batches of its step.
        """
        rng = self._generator(rows)
        k = rng.choice(self.num_gist_tokens)
        make = self._encoder_decoder_row if self.encoder_decoder else self._decoder_row
        pairs = [pair for pair in (make(row, k) for row in rows) if pair is not None]
        if len(pairs) < len(rows):
            self.lost += len(rows) - len(pairs)
            log.warning(
                "%d rows so far are too long to keep their gist or output; left out", self.lost
            )
        if not pairs:
            pairs = [self._empty_row()]
        names, weights = list(self.conditions), list(self.conditions.values())
        conditions = rng.choices(names, weights, k=len(pairs))
        if self.pack is not None:
            return self._packed(pairs, self.pack, conditions)
        ids, labels = zip(*pairs, strict=True)
        side = "right" if self.encoder_decoder else "left"
        return Batch(
            input_ids=_pad(ids, self.pad_id, side),
            attention_mask=_pad([torch.ones_like(row) for row in ids], 0, side),
            labels=_pad(labels, IGNORED, side),
            conditions=conditions,
        )

    def _packed(
        self, examples: Sequence[tuple[Tensor, Tensor]], capacity: int, conditions: list[str]
    ) -> Batch:
        rows = fill_rows([max(len(ids), len(labels)) for ids, labels in examples], capacity)

        def laid_out(part: int, padding: int) -> Tensor:
            return _pad([torch.cat([examples[n][part] for n in row]) for row in rows], padding)

        def numbers(part: int) -> Tensor:
            return _pad(
                [torch.cat([torch.full_like(examples[n][part], n) for n in row]) for row in rows],
                -1,
            )

        documents = numbers(0)
        batch = Batch(
            input_ids=laid_out(0, self.pad_id),
            attention_mask=(documents >= 0).long(),
            labels=laid_out(1, IGNORED),
            conditions=conditions,
            documents=documents,
        )
        if self.encoder_decoder:
            batch["label_documents"] = numbers(1)
        return batch

    def _empty_row(self) -> tuple[Tensor, Tensor]:
        ids = torch.tensor([self.gist_id, self.pad_id])  # not k of them: k may be why none fits
        return ids, torch.full_like(ids, IGNORED)

    def _decoder_row(self, row: EncodedExample, k: int) -> tuple[Tensor, Tensor] | None:
        prompt = row.prompt(self.gist_id, k)
        ids = [*prompt, *row.completion][: self.limits.total]
        if len(ids) <= len(prompt):
            return None
        labels = [IGNORED] * len(prompt) + ids[len(prompt) :]
        return torch.tensor(ids), torch.tensor(labels)

    def _encoder_decoder_row(self, row: EncodedExample, k: int) -> tuple[Tensor, Tensor] | None:
        ids = _cut_before_eos(row.prompt(self.gist_id, k), self.limits.source)
        if ids.count(self.gist_id) < k:
            return None
        return torch.tensor(ids), torch.tensor(_cut_before_eos(row.completion, self.limits.target))

    def _generator(self, rows: Sequence[EncodedExample]) -> Random:
        ids = array("q", (i for row in rows for i in (*row.instruction, *row.input)))
        return Random(self.seed << 32 | zlib.crc32(ids.tobytes()))


def _cut_before_eos(ids: list[int], limit: int) -> list[int]:
    """At most `limit` ids; the last stays the last (eos)."""
    return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]


def _pad(rows: Sequence[Tensor], value: int, side: str = "right") -> Tensor:
    return pad_sequence(list(rows), batch_first=True, padding_value=value, padding_side=side)


def fill_rows(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which items share a row: as few rows of `capacity` as first fit finds, then evenly filled.

    An item that is longer has a row of its own.

    >>> fill_rows([5, 3, 4, 2], 8)
    [[0, 3], [2, 1]]
    """
    order = sorted(range(len(lengths)), key=lambda n: -lengths[n])
    room: list[int] = []
    rows: list[list[int]] = []
    for item in order:
        row = next((r for r, left in enumerate(room) if lengths[item] <= left), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(item)
        room[row] -= lengths[item]
    even: list[list[int]] = [[] for _ in rows]
    filled = [0] * len(rows)
    for item in order:  # the next longest into the emptiest row: rows end up alike, unpadded
        row = filled.index(min(filled))
        even[row].append(item)
        filled[row] += lengths[item]
    return even if max(filled) <= max(capacity, lengths[order[0]]) else rows
