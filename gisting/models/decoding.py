"""How answers are decoded: the options of `GistModel.generate` as transformers wants them.

What a checkpoint's generation_config.json says must not leak in: transformers' `generate` would
take from there whatever is not given, so everything that changes an answer is given here.
"""

from typing import Any

from transformers import GenerationConfig

from gisting.errors import OptionError
from gisting.models.inputs import check_numbers

NO_PENALTIES = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_new_tokens": 0,
}
NO_OTHER_SAMPLING = {"min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}
GREEDY = {"temperature": 1.0, "top_p": 1.0, "top_k": 50}


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
    if not temperature > 0 or not 0 < top_p <= 1 or top_k < 0:
        raise OptionError("temperature must be above 0, top_p in (0, 1], top_k at least 0")
    if num_return_sequences > num_beams and not (do_sample and num_beams == 1):
        raise OptionError(
            f"{num_return_sequences} different answers need do_sample, or as many beams"
        )
    if streamed and max(num_beams, num_return_sequences) > 1:
        raise OptionError("a stream is one answer; leave out num_beams and num_return_sequences")
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k} | NO_OTHER_SAMPLING
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=do_sample,
        num_beams=num_beams,
        num_return_sequences=num_return_sequences,
        **(sampling if do_sample else GREEDY),
        **NO_PENALTIES,
        **more,
    )
