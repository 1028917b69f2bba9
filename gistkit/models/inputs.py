"""What users pass to a model, checked, and the decoding options made of it.

What a checkpoint's generation_config.json says must not leak in: transformers' `generate` takes
from there whatever is not given, and a sampling default, a list of forbidden words or a cache that
is switched off would change answers. Of all that, only the special ids are taken.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from gistkit.errors import OptionError, PromptError

Text = str | Sequence[str]

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
LOWEST_TEMPERATURE = 1e-6
"""Below it logits divided by it leave float32; above it, sampling is greedy already."""


def as_list(texts: Text, what: str) -> list[str]:
    """One string or many as a list (raises PromptError where there is none, or it is no text)."""
    given = _listed(texts)
    for text in given:
        if not isinstance(text, str):
            raise PromptError(f"{what} {text!r:.60} is no text; give a string or a list of strings")
    if not given:
        raise PromptError(f"no {what} given; give at least one")
    return given


def stops_of(stop_strings: Text | None) -> list[str]:
    """Stop strings as a list (raises OptionError for one that is empty or no text)."""
    stops = [] if stop_strings is None else _listed(stop_strings)
    for stop in stops:
        if not isinstance(stop, str) or not stop:
            raise OptionError(f"stop string {stop!r:.60} is no text, or empty; leave it out")
    return stops


def cut_at(answer: str, stops: Sequence[str]) -> str:
    """`answer` up to the first stop string, without white space around it."""
    found = [index for stop in stops if (index := answer.find(stop)) >= 0]
    return answer[: min(found)].strip() if found else answer.strip()


def _listed(given: Any) -> list[Any]:
    several = isinstance(given, Iterable) and not isinstance(given, str | bytes)
    return list(given) if several else [given]


def check_numbers(*, least: int = 1, **numbers: int) -> None:
    """Raise OptionError, by its name, for a number that is not whole or below `least`."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise OptionError(f"`{name}` must be a whole number, not {number!r:.60}")
        if number < least:
            raise OptionError(f"`{name}` must be at least {least}, not {number}")


def check_real(**numbers: float) -> None:
    """Raise OptionError, by its name, for what is no finite number."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number):
            raise OptionError(f"`{name}` must be a number, not {number!r:.60}")


def counts_of(numbers: int | Sequence[int]) -> tuple[int, ...]:
    """One number of gist tokens or several (raises OptionError for none, or one below 1)."""
    counts = _listed(numbers)
    if not counts:
        raise OptionError(f"`num_gist_tokens` must be at least 1, not {numbers}")
    for count in counts:
        check_numbers(num_gist_tokens=count)
    return tuple(int(count) for count in counts)


def check_device(device: str | torch.device) -> torch.device:
    """The device (raises OptionError where it is missing); "auto" is a GPU where there is one."""
    if device == "auto":
        mps = "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device("cuda" if torch.cuda.is_available() else mps)
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise OptionError(f"device {device!s} is not available here; use `device='cpu'`") from error
    return found


def parse_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """float32 | bfloat16 | float16, or fp32 | bf16 | fp16 (raises OptionError)."""
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise OptionError(f"unknown precision {dtype!r}; choose one of {', '.join(DTYPES)}")
    assert found is not None
    return found


def move(model: Any, device: torch.device) -> PreTrainedModel:
    """The model on `device`, in evaluation mode."""
    moved: PreTrainedModel = model.to(device).eval()
    return moved


class _AsGiven(GenerationConfig):
    """Options that a checkpoint's own do not complete; what is left out has transformers' default.

    `generate` passes the checkpoint's with `allow_custom_entries`, and nothing else so.
    """

    def update(
        self, defaults_only: bool = False, allow_custom_entries: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        given: Mapping[str, Any] = kwargs
        if allow_custom_entries:
            given = {name: kwargs[name] for name in SPECIAL_IDS if name in kwargs}
        unused: dict[str, Any] = super().update(  # type: ignore[no-untyped-call]
            defaults_only=defaults_only, **given
        )
        return unused


def decoding_options(
    *,
    max_new_tokens: int,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    num_beams: int = 1,
    num_return_sequences: int = 1,
    streamed: bool = False,
    **more: Any,
) -> GenerationConfig:
    """Checked options; `more` (special ids, stop strings) goes unchanged (raises OptionError)."""
    check_numbers(
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        num_return_sequences=num_return_sequences,
    )
    check_numbers(least=0, top_k=top_k)
    check_real(temperature=temperature, top_p=top_p)
    if not temperature >= LOWEST_TEMPERATURE or not 0 < top_p <= 1:
        raise OptionError(
            f"`temperature` must be at least {LOWEST_TEMPERATURE} (greedy: `do_sample=False`), "
            "`top_p` in (0, 1]"
        )
    if num_return_sequences > num_beams and not (do_sample and num_beams == 1):
        raise OptionError(
            f"{num_return_sequences} different answers need `do_sample`, or as many beams"
        )
    if streamed and max(num_beams, num_return_sequences) > 1:
        raise OptionError(
            "a stream is one answer; leave out `num_beams` and `num_return_sequences`"
        )
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k} if do_sample else {}
    return _AsGiven(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        do_sample=bool(do_sample),
        num_beams=num_beams,
        num_return_sequences=num_return_sequences,
        **sampling,
        **more,
    )
