"""How answers are decoded: the options of `GistModel.generate` as transformers wants them.

What a checkpoint's generation_config.json says must not leak in: transformers' `generate` takes
from there whatever is not given, and a sampling default, a list of forbidden words or a cache that
is switched off would change answers. Of all that, only the special ids are taken.
"""

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

from gistkit.errors import OptionError
from gistkit.models.inputs import check_numbers, check_real

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
LOWEST_TEMPERATURE = 1e-6
"""Below it logits divided by it leave float32; above it, sampling is greedy already."""


class _AsGiven(GenerationConfig):
    """Options that a checkpoint's own do not complete; what is left out has transformers' default.

    `generate` hands over the checkpoint's with `allow_custom_entries`, and nothing else so.
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
    do_sample: bool,
    temperature: float,
    top_p: float,
    top_k: int,
    num_beams: int,
    num_return_sequences: int,
    streamed: bool,
    **more: Any,
) -> GenerationConfig:
    """Checked options; `more` (special ids, stop strings) goes through as it is.

    Raises:
        OptionError: a number out of range, or options that exclude each other.
    """
    check_numbers(
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        num_return_sequences=num_return_sequences,
    )
    check_numbers(least=0, top_k=top_k)
    check_real(temperature=temperature, top_p=top_p)
    if not temperature >= LOWEST_TEMPERATURE or not 0 < top_p <= 1:
        raise OptionError(
            f"temperature must be at least {LOWEST_TEMPERATURE} (greedy: do_sample=False), "
            "top_p in (0, 1]"
        )
    if num_return_sequences > num_beams and not (do_sample and num_beams == 1):
        raise OptionError(
            f"{num_return_sequences} different answers need do_sample, or as many beams"
        )
    if streamed and max(num_beams, num_return_sequences) > 1:
        raise OptionError("a stream is one answer; leave out num_beams and num_return_sequences")
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k} if do_sample else {}
    return _AsGiven(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        do_sample=bool(do_sample),
        num_beams=num_beams,
        num_return_sequences=num_return_sequences,
        **sampling,
        **more,
    )
