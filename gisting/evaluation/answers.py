"""Answer every example of a split by generation, under one condition, without any mask.

By the theorem a cached gist gives what the masked pass gives, an empty prefix gives neg_control,
and the full prompt is pos_control. So evaluation runs what users run. Knows nothing about scores.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from gisting.errors import OptionError
from gisting.masks import CONDITIONS
from gisting.model import GistModel
from gisting.prompts import Example


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """How to answer.

    Attributes:
        condition: gist | pos_control | neg_control.
        num_gist_tokens: k; None is the model's default.
        batch_size: inputs answered at once.
        max_new_tokens: at most this many tokens each.
        max_length: published `generation_max_length` of decoder-only models: the longest prompt of
            a batch counts against it, so long prompts get few new tokens. None: no such limit.
        num_beams: beam search.
    """

    condition: str = "gist"
    num_gist_tokens: int | None = None
    batch_size: int = 8
    max_new_tokens: int = 128
    max_length: int | None = None
    num_beams: int = 1

    def __post_init__(self) -> None:
        if self.condition not in CONDITIONS:
            known = ", ".join(CONDITIONS)
            raise OptionError(f"unknown condition {self.condition!r}; choose one of {known}")


def answer(
    model: GistModel,
    examples: Sequence[Example],
    options: AnswerOptions,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """An answer for each example, in order. An instruction met twice is compressed once a batch.

    Examples of like length share a batch. A prompt with no room left for one new token is answered
    with "", as the published evaluation does.

    Args:
        progress: called with the number of examples answered since the last call.

    Raises:
        PromptError: an instruction is empty, or a text holds `<GIST>`.
    """
    k = model.check_k(options.num_gist_tokens)
    lengths = [len(model.encoder.prompt(e.instruction, e.input, k)) for e in examples]
    answers = [""] * len(examples)
    for rows in _batches(lengths, options.batch_size):
        room = _room(model, max(lengths[row] for row in rows), options)
        if room >= 1:
            for row, text in zip(
                rows,
                _answer_batch(model, [examples[r] for r in rows], k, room, options),
                strict=True,
            ):
                answers[row] = text
        progress(len(rows))
    return answers


def _answer_batch(
    model: GistModel, batch: Sequence[Example], k: int, room: int, options: AnswerOptions
) -> list[str]:
    inputs = [example.input for example in batch]
    instructions = [example.instruction for example in batch]
    generate = partial(model.generate, max_new_tokens=room, num_beams=options.num_beams)
    if options.condition == "pos_control":
        return generate(inputs, instructions=instructions, num_gist_tokens=k)
    if options.condition == "neg_control":
        return generate(inputs)
    unique = list(dict.fromkeys(instructions))
    gists = model.compress(unique, num_gist_tokens=k)
    rows = torch.tensor([unique.index(instruction) for instruction in instructions])
    return generate(inputs, gists.select(rows))


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return (order[i : i + size] for i in range(0, len(order), size))


def _room(model: GistModel, longest: int, options: AnswerOptions) -> int:
    limits = [options.max_new_tokens]
    if options.max_length is not None and model.adapter.max_positions is not None:
        limits.append(options.max_length - longest)
    if model.adapter.max_positions is not None:
        limits.append(model.adapter.max_positions - longest)
    return min(limits)
