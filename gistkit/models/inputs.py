"""Checking and batching what users pass, and tidying what they get back.

Knows nothing about gists beyond the hash of an instruction.

Shapes: B batch, S sequence.
"""

import math
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gistkit.errors import OptionError, PromptError
from gistkit.gist import Prefix, Provenance, instruction_hash

Text = str | Sequence[str]


def as_list(texts: Text, what: str) -> list[str]:
    """One string or many as a list (raises PromptError where there is none, or it is no text)."""
    given: list[Any] = list(texts) if _is_several(texts) else [texts]
    for text in given:
        if not isinstance(text, str):
            raise PromptError(f"{what} {text!r:.60} is no text; give a string or a list of strings")
    if not given:
        raise PromptError(f"no {what} given; give at least one")
    return given


def _is_several(texts: object) -> bool:
    return isinstance(texts, Iterable) and not isinstance(texts, str | bytes)


def check_numbers(*, least: int = 1, **numbers: int) -> None:
    """Raise OptionError, by its name, for a number that is not whole or below `least`."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise OptionError(f"{name} must be a whole number, not {number!r:.60}")
        if number < least:
            raise OptionError(f"{name} must be at least {least}, not {number}")


def counts_of(numbers: int | Sequence[int]) -> tuple[int, ...]:
    """One number of gist tokens or several (raises OptionError for none, or one below 1)."""
    several = isinstance(numbers, Sequence) and not isinstance(numbers, str)
    counts: Any = tuple(numbers) if several else (numbers,)  # type: ignore[arg-type]
    if not counts:
        raise OptionError(f"num_gist_tokens must be at least 1, not {numbers}")
    for count in counts:
        check_numbers(num_gist_tokens=count)
    return tuple(int(count) for count in counts)


def check_real(**numbers: float) -> None:
    """Raise OptionError, by its name, for what is no finite number."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number):
            raise OptionError(f"{name} must be a number, not {number!r:.60}")


def check_gist(gist: object) -> Prefix:
    """The gist (raises OptionError where an instruction or a path stands for one)."""
    if not isinstance(gist, Prefix):
        raise OptionError(
            f"{gist!r:.60} is no gist; compress the instruction, or read a file with Gist.load"
        )
    return gist


def check_device(device: str | torch.device) -> torch.device:
    """The device, if this machine has it (raises OptionError)."""
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise OptionError(f"device {device!s} is not available here; use device='cpu'") from error
    return place


def move(model: Any, device: torch.device) -> PreTrainedModel:
    """The model on `device`, in evaluation mode."""
    moved: PreTrainedModel = model.to(device).eval()
    return moved


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside a `with`, for models that are being trained.

    Otherwise dropout would leave a gist to chance, and gradient checkpointing would drop its cache.
    """
    training = [one for one in model.modules() if one.training] if model.training else []
    for one in training:
        one.training = False
    try:
        yield
    finally:
        for one in training:
            one.training = True


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
    """Stop strings as a list (raises OptionError for one that is empty or no text)."""
    given = [] if stop_strings is None else stop_strings
    stops: list[Any] = list(given) if _is_several(given) else [given]
    for stop in stops:
        if not isinstance(stop, str) or not stop:
            raise OptionError(f"stop string {stop!r:.60} is no text, or empty; leave it out")
    return stops


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
        OptionError: the seed is no whole number from 0 to 2**63 - 1.
    """
    if seed is None:
        yield
        return
    check_numbers(least=0, seed=seed)
    if seed >= 2**63:
        raise OptionError(f"seed must be below 2**63, not {seed}")
    devices = [device] if device.type == "cuda" else []
    with _SEEDING, torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
