from gistkit.training.trainer import WINDOW, OrderedLengthSampler


def test_every_row_once_in_its_window() -> None:
    lengths = [(7 * i) % 13 for i in range(1000)]
    rows = list(OrderedLengthSampler(lengths, 8, seed=1))
    assert sorted(rows) == list(range(1000))
    width = 8 * WINDOW
    for start in range(0, 1000, width):
        assert all(start <= row < start + width for row in rows[start : start + width])


def test_batches_hold_like_lengths_and_are_shuffled() -> None:
    lengths = [(7 * i) % 40 for i in range(8 * WINDOW)]
    rows = list(OrderedLengthSampler(lengths, 8, seed=1))
    means = []
    for i in range(0, len(rows), 8):
        batch = [lengths[row] for row in rows[i : i + 8]]
        assert max(batch) - min(batch) <= 1
        means.append(sum(batch) / 8)
    assert means != sorted(means)
    assert rows == list(OrderedLengthSampler(lengths, 8, seed=1))
    assert rows != list(OrderedLengthSampler(lengths, 8, seed=2))
