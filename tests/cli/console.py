"""How a command ended, as the tests of the command line see it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Its one-line error; asserts that there is one, and nothing else."""
        assert self.status == 2, self
        assert self.out == ""
        assert self.err.startswith("gistkit: error: ")
        assert self.err.count("\n") == 1 and self.err.endswith("\n")
        return self.err.removeprefix("gistkit: error: ").rstrip()


Run = Callable[..., Ended]
