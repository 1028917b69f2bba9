"""Answer every example of a split by generation, under one condition.

By the theorem a cached gist gives what the masked pass gives, an empty prefix gives neg_control,
and the full prompt is pos_control. So evaluation runs what users run; `path="mask"` runs the masked
pass itself. Knows nothing about scores.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from gistkit import baselines
from gistkit.conditions import CONDITIONS, FROM_GIST, condition_named
from gistkit.errors import OptionError
from gistkit.evaluation.masked import generate_masked
from gistkit.gist import Gist
from gistkit.model import GistModel
from gistkit.prompts import Example

PATHS = ("cache", "mask")


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """How to answer; raises OptionError for an unknown condition or path, or beams under the mask.

    Attributes:
        num_gist_tokens: k; None is the model's default.
        max_length: published `generation_max_length` of decoder-only models: the longest prompt of
            a batch counts against it, so long prompts get few new tokens. None: no such limit.
        path: "cache" generates from the gist, or "mask" under the condition's mask: a full pass for
            every token, greedy only.
    """

    condition: str = "gist"
    num_gist_tokens: int | None = None
    batch_size: int = 8
    max_new_tokens: int = 128
    max_length: int | None = None
    num_beams: int = 1
    path: str = "cache"

    def __post_init__(self) -> None:
        mode = condition_named(self.condition).mode
        if self.path == "cache" and not mode:
            raise OptionError(f"{self.condition} has no cached form; evaluate it with path=mask")
        if self.path not in PATHS:
            raise OptionError(f"unknown path {self.path!r}; choose one of {', '.join(PATHS)}")
        if self.path == "mask" and self.num_beams > 1:
            raise OptionError("path=mask is greedy; set num_beams to 1, or use path=cache")


class Gists:
    """Gists that are made when first needed and dropped after their last use.

    `instructions` are those of all prompts to come, repeated as often as they are used.
    """

    def __init__(self, compress: Callable[[list[str]], Gist], instructions: Sequence[str]) -> None:
        self._compress = compress
        self._uses = Counter(instructions)
        self._made: dict[str, Gist] = {}

    def take(self, instructions: Sequence[str]) -> list[Gist]:
        """The gist of each instruction; new ones are compressed in one batch."""
        new = [text for text in dict.fromkeys(instructions) if text not in self._made]
        if new:
            self._made.update(zip(new, self._compress(new), strict=True))
        rows = [self._made[text] for text in instructions]
        self._uses.subtract(instructions)
        for text in set(instructions):
            if not self._uses[text]:
                del self._made[text]
        return rows


def answer(
    model: GistModel,
    examples: Sequence[Example],
    options: AnswerOptions,
    *,
    known: Mapping[int, str] = MappingProxyType({}),
    found: Callable[[Mapping[int, str]], None] = lambda answers: None,
) -> list[str]:
    """An answer for each example, in order. Each distinct instruction is compressed once.

    Examples of similar length share a batch. A prompt that leaves no room for one new token is
    answered with "", as in the published evaluation. Raises PromptError for an empty instruction,
    and for a text that holds `<GIST>`.

    Args:
        known: answers from an earlier run, by row.
        found: called after each batch with its answers, by row.
    """
    k = model.check_k(options.num_gist_tokens)
    lengths = [len(model.encoder.prompt(e.instruction, e.input, k)) for e in examples]
    answers = dict(known)
    todo = [example for row, example in enumerate(examples) if row not in answers]
    gists = Gists(
        partial(model.compress, num_gist_tokens=k), [example.instruction for example in todo]
    )
    for batch in _batches(lengths, options.batch_size):
        rows = [row for row in batch if row not in answers]
        if not rows:
            continue
        room = _room(model, max(lengths[row] for row in batch), options)
        texts = [""] * len(rows)
        if room >= 1:
            texts = _answer_batch(model, [examples[row] for row in rows], k, room, options, gists)
        new = dict(zip(rows, texts, strict=True))
        answers.update(new)
        found(new)
    return [answers[row] for row in range(len(examples))]


def _answer_batch(
    model: GistModel,
    batch: Sequence[Example],
    k: int,
    room: int,
    options: AnswerOptions,
    gists: Gists,
) -> list[str]:
    inputs = [example.input for example in batch]
    instructions = [example.instruction for example in batch]
    if options.path == "mask":
        return generate_masked(
            model,
            inputs,
            instructions,
            condition=options.condition,
            num_gist_tokens=k,
            max_new_tokens=room,
        )
    mode = CONDITIONS[options.condition].mode
    prefix = Gist.stack(gists.take(instructions)) if mode == FROM_GIST else None
    beams = {"max_new_tokens": room, "num_beams": options.num_beams}
    return baselines.answer(model, mode, instructions, inputs, prefix, num_gist_tokens=k, **beams)


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return (order[i : i + size] for i in range(0, len(order), size))


def _room(model: GistModel, longest: int, options: AnswerOptions) -> int:
    limit = model.adapter.max_positions
    if limit is None:
        return options.max_new_tokens
    if options.max_length is not None:
        limit = min(limit, options.max_length)
    return min(options.max_new_tokens, limit - longest)
