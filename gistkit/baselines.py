"""A prompt answered in four modes: from its gist, and from its baselines.

    mode            kept between answers       read for each answer
    gist            GIST*k                     input
    cached prompt   instruction GIST*k         input                       as engines cache prefixes
    full prompt     nothing                    instruction GIST*k input
    no prompt       nothing                    input

`prepare` makes what a mode keeps, `answer` answers from it, `compare` times both side by side.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from gistkit.errors import OptionError, PromptError
from gistkit.gist import Prefix
from gistkit.model import GistModel
from gistkit.models.inputs import check_numbers
from gistkit.timing import interleave, synchronize

GIST, CACHED, FULL, NONE = "gist", "cached prompt", "full prompt", "no prompt"
MODES = (GIST, CACHED, FULL, NONE)
Text = str | Sequence[str]


def prepare(
    model: GistModel,
    mode: str,
    instructions: Text,
    *,
    num_gist_tokens: int | None = None,
    allow_untrained: bool = False,
) -> Prefix | None:
    """What a mode keeps of one instruction, or of B.

    Args:
        num_gist_tokens: k. A full prompt ends with k gist tokens as in training; where k was not
            trained (and is allowed), with the model's default number.

    Raises:
        OptionError: k was not trained and is not allowed, or this model cannot cache a prompt.
        PromptError: an instruction cannot be used.
    """
    if mode == GIST:
        return model.compress(
            instructions, num_gist_tokens=num_gist_tokens, allow_untrained=allow_untrained
        )
    if mode == CACHED:
        return model.cache_prompt(instructions, num_gist_tokens=_trained(model, num_gist_tokens))
    return None


def answer(
    model: GistModel,
    mode: str,
    instructions: Text,
    inputs: Text,
    prefix: Prefix | None,
    *,
    num_gist_tokens: int | None = None,
    **options: Any,
) -> list[str]:
    """Answers to the inputs, given what `prepare` made; options and errors as `generate`."""
    if mode == FULL:
        k = _trained(model, num_gist_tokens)
        options |= {"instructions": instructions, "num_gist_tokens": k}
    return model.generate(inputs, prefix, **options)


@dataclass(frozen=True, slots=True)
class Answered:
    """Answers in one mode, and their cost on this machine.

    Attributes:
        missing: why this model cannot answer in this mode; "" where it can.
        kept_tokens: prompt tokens kept between answers.
        kept_bytes: memory of their activations.
        read_tokens: prompt tokens read for an answer, those of the (longest) input included.
        prepare_seconds: to make what is kept. Median over the rounds, as the next two.
        first_token_seconds: until the first new token.
        total_seconds: until the last.
    """

    mode: str
    missing: str = ""
    outputs: tuple[str, ...] = ()
    kept_tokens: int = 0
    kept_bytes: int = 0
    read_tokens: int = 0
    prepare_seconds: float = 0.0
    first_token_seconds: float = 0.0
    total_seconds: float = 0.0


def compare(
    model: GistModel,
    instruction: str,
    inputs: Text = "",
    *,
    num_gist_tokens: int | None = None,
    allow_untrained: bool = False,
    max_new_tokens: int = 128,
    rounds: int = 5,
) -> list[Answered]:
    """Answer greedily in all four modes, in turn, in this process; a first round is not timed.

    `inputs` are answered as one batch. Raises OptionError for a number below one or a k that was
    not trained and not allowed, PromptError for a text that cannot be used.
    """
    check_numbers(max_new_tokens=max_new_tokens, rounds=rounds)
    k = model.check_k(num_gist_tokens, allow_untrained=allow_untrained)
    texts = [inputs] if isinstance(inputs, str) else list(inputs)
    input_tokens = max(len(model.encoder.input(text)) for text in texts)
    full_k = _trained(model, k)
    prompt_tokens = max(len(model.encoder.prompt(instruction, text, full_k)) for text in texts)
    prefixes: dict[str, Prefix | None] = {}
    outputs: dict[str, tuple[str, ...]] = {}

    def run(mode: str) -> tuple[float, float, float]:
        start = time.perf_counter()
        prefixes[mode] = prepare(
            model, mode, instruction, num_gist_tokens=k, allow_untrained=allow_untrained
        )
        synchronize(model.device)
        prepared = time.perf_counter()
        generate = partial(
            answer, model, mode, instruction, texts, prefixes[mode], num_gist_tokens=k
        )
        generate(max_new_tokens=1)
        first = time.perf_counter()
        outputs[mode] = tuple(generate(max_new_tokens=max_new_tokens))
        return prepared - start, first - prepared, time.perf_counter() - first

    missing: dict[str, str] = {}
    for mode in MODES:  # the round that is not timed
        try:
            run(mode)
        except (OptionError, PromptError) as error:  # no such cache, or no room for the prompt
            if mode == GIST:
                raise
            missing[mode] = str(error)
    sides: dict[str, Callable[[], tuple[float, float, float]]] = {
        mode: partial(run, mode) for mode in MODES if mode not in missing
    }
    samples = interleave(sides, rounds=rounds, warmup=0, seed=0)
    found = []
    for mode in MODES:
        if mode in missing:
            found.append(Answered(mode, missing[mode]))
            continue
        prefix = prefixes[mode]
        times = [median(values) for values in zip(*samples[mode], strict=True)]
        found.append(
            Answered(
                mode,
                outputs=outputs[mode],
                kept_tokens=0 if prefix is None else prefix.num_tokens,
                kept_bytes=0 if prefix is None else prefix.num_bytes,
                read_tokens=prompt_tokens if mode == FULL else input_tokens,
                prepare_seconds=0.0 if prefix is None else times[0],
                first_token_seconds=times[1],
                total_seconds=times[2],
            )
        )
    return found


def _trained(model: GistModel, k: int | None) -> int:
    """k where the model was trained for it, else its default: no prompt ends with another k."""
    if k is not None and k in model.config.num_gist_tokens:
        return k
    return model.config.default_k
