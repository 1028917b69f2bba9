"""Peak memory is what a piece of work allocates at once."""

import torch

from gistkit.benchmark.memory import peak_bytes

MEBI = 2**20


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
