"""Rows in the order of the data, with rows of like length in the same batch.

A data set that grows harder is a curriculum only while its order is kept; padding is small only
where a batch holds like lengths. So rows are sorted by length inside windows of the data's order,
and the batches of a window are shuffled. Without that order, rows are grouped from the whole set.
"""

from collections.abc import Iterator, Sequence
from random import Random

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

WINDOW = 40  # batches


class OrderedLengthSampler(Sampler[int]):
    """Row numbers, batch after batch; the same order for the same seed.

    Args:
        lengths: tokens of each row.
        batch_size: rows of a batch.
        seed: of the shuffle inside windows.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        rng = Random(self.seed)
        width = WINDOW * self.batch_size
        for start in range(0, len(self.lengths), width):
            window = range(start, min(start + width, len(self.lengths)))
            rows = sorted(window, key=lambda row: self.lengths[row])
            batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
            full = [batch for batch in batches if len(batch) == self.batch_size]
            rng.shuffle(full)
            for batch in full + batches[len(full) :]:
                yield from batch


class GroupedLengthSampler(Sampler[int]):
    """Hugging Face's grouping by length, in an order that follows from seed and epoch alone.

    Theirs draws from the global random state, so a run resumed in a later epoch would see other
    batches than the run that was interrupted.

    Args:
        lengths, batch_size, seed: as above.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = list(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))
