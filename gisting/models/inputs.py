"""Checking and batching what users pass, and tidying what they get back.

Knows nothing about gists beyond the hash of an instruction.

Shapes: B batch, S sequence.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from gisting.errors import OptionError, PromptError
from gisting.gist import Provenance, instruction_hash

Text = str | Sequence[str]


def as_list(texts: Text, what: str) -> list[str]:
    """One string or many as a list (raises PromptError where there is none)."""
    given = [texts] if isinstance(texts, str) else list(texts)
    if not given:
        raise PromptError(f"no {what} given; give at least one")
    return given


def check_numbers(**numbers: int) -> None:
    """Raise OptionError for a number below one, by its name."""
    for name, number in numbers.items():
        if number < 1:
            raise OptionError(f"{name} must be at least 1, not {number}")


def check_device(device: str | torch.device) -> torch.device:
    """The device, if this machine has it (raises OptionError)."""
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"device {device!s} is not available here; use device='cpu'") from error
    return place


def move(model: Any, device: torch.device) -> PreTrainedModel:
    """The model on `device`, in evaluation mode."""
    moved: PreTrainedModel = model.to(device).eval()
    return moved


def pad_left(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rows of ids as [B, S] ids and their [B, S] mask, 0 at padding."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


def provenance_of(texts: Sequence[str], lengths: Sequence[int]) -> tuple[Provenance, ...]:
    """Where each row of a gist comes from."""
    return tuple(
        Provenance(instruction_hash(text), n) for text, n in zip(texts, lengths, strict=True)
    )


def stops_of(stop_strings: Text | None) -> list[str]:
    """Stop strings as a list."""
    return [stop_strings] if isinstance(stop_strings, str) else list(stop_strings or [])


def cut_at(answer: str, stops: Sequence[str]) -> str:
    """`answer` up to the first stop string, without white space around it."""
    places = [place for stop in stops if (place := answer.find(stop)) >= 0]
    return answer[: min(places)].strip() if places else answer.strip()


_SEEDING = threading.RLock()


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Seed torch inside a `with`, and put the caller's random state back; None changes nothing.

    torch samples from one generator for the whole process: seeded calls wait for each other, and
    whoever draws random numbers in another thread meanwhile disturbs them.

    Raises:
        OptionError: the seed is not between 0 and 2**63 - 1.
    """
    if seed is None:
        yield
        return
    if not 0 <= seed < 2**63:
        raise OptionError(f"seed must be between 0 and 2**63 - 1, not {seed}")
    devices = [device] if device.type == "cuda" else []
    with _SEEDING, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
