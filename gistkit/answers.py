"""Answers from gists: to one input, with all that is reported of it, or to a file of prompts.

    read_prompts ── check every line ──> batches ──> FILE.partial ── all there ──> FILE

An instruction is compressed once, and its gist is kept until its last line is answered. Each result
carries `run`, a digest of the model and the settings, so that no run resumes another one.
"""

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistkit.errors import OptionError, PromptError, SaveError

if TYPE_CHECKING:  # torch takes seconds to import, and the command line checks settings first
    from gistkit.gist import Gist
    from gistkit.model import GistModel

PUBLISHED_MAX_NEW_TOKENS = 512
REPORTED = ("num_gist_tokens", "compression_factor", "kv_bytes_before", "kv_bytes_after")
"""Sizes in each result of many."""

Result = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How prompts are compressed and answered; None: the model's default (raises OptionError)."""

    num_gist_tokens: int | None = None
    allow_untrained: bool = False
    max_new_tokens: int | None = None
    temperature: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_gist_tokens", "max_new_tokens"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise OptionError(f"`{name}` must be at least 1, not {number}")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise OptionError(f"`temperature` must be 0 (greedy) or more, not {self.temperature}")
        if self.seed is not None and self.seed < 0:
            raise OptionError(f"`seed` must be 0 or more, not {self.seed}")

    def compress(self, model: "GistModel", instructions: list[str]) -> "Gist":
        return model.compress(
            instructions,
            num_gist_tokens=self.num_gist_tokens,
            allow_untrained=self.allow_untrained,
        )

    def longest_answer(self, model: "GistModel", lengths: Iterable[int]) -> int:
        """`max_new_tokens`, or the published 512 if positions allow it behind `lengths` tokens."""
        limit = model.adapter.max_positions
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if limit is None:
            return PUBLISHED_MAX_NEW_TOKENS
        return max(1, min(PUBLISHED_MAX_NEW_TOKENS, limit - max(lengths)))

    def generate(
        self,
        model: "GistModel",
        inputs: list[str],
        gist: "Gist",
        *,
        max_new_tokens: int,
        batch: int = 0,
    ) -> list[str]:
        """The answers. `batch` is added to the seed, so that batches sample differently."""
        return model.generate(
            inputs,
            gist,
            max_new_tokens=max_new_tokens,
            do_sample=self.temperature > 0,
            temperature=self.temperature or 1.0,
            seed=None if self.seed is None else self.seed + batch,
        )


def answer(
    model: "GistModel",
    input: str,
    settings: Settings,
    *,
    instruction: str | None = None,
    gist: "Gist | None" = None,
) -> "tuple[Gist, Result]":
    """Answer one input from the gist of `instruction`, or from `gist` (one row).

    Returns the gist, and what is reported: output, sizes and times, as JSON values.
    """
    start = time.perf_counter()
    if gist is None:
        assert instruction is not None
        gist = settings.compress(model, [instruction])
    compressed = time.perf_counter()
    before = max(gist.lengths) + len(model.encoder.input(input))
    length = settings.longest_answer(model, [before])
    (output,) = settings.generate(model, [input], gist, max_new_tokens=length)
    answered = time.perf_counter()
    shapes = Counter((name.rsplit(".")[-1], tuple(t.shape)) for name, t in gist.tensors.items())
    return gist, {
        "model_type": model.hf_model.config.model_type,
        "fingerprint": gist.model,
        "trained_gist_tokens": list(model.config.num_gist_tokens),
        "device": str(model.hf_model.device),
        "instruction": instruction,
        "instruction_sha256": gist.provenance[0].instruction_sha256,
        "input": input,
        "output": output,
        "max_new_tokens": length,
        **sizes(gist),
        "cache": [
            {"what": what, "tensors": count, "shape": list(shape)}
            for (what, shape), count in shapes.items()
        ],
        "seconds": {
            "compress": round(compressed - start, 6),
            "generate": round(answered - compressed, 6),
        },
    }


def sizes(gist: "Gist") -> Result:
    """How much a gist of one row saves. `prompt_tokens` counts start and gist tokens, as published.

    `kv_bytes_before` is what the whole prompt would keep in the gist's form and precision.
    """
    k, size = gist.num_tokens, gist.num_bytes
    instruction = gist.provenance[0].instruction_tokens
    return {
        "num_gist_tokens": k,
        "instruction_tokens": instruction,
        "prompt_tokens": instruction + k,
        "compression_factor": round((instruction + k) / k, 4),
        "kv_bytes_before": size // k * (instruction + k),
        "kv_bytes_after": size,
    }


@dataclass(frozen=True, slots=True)
class PromptLine:
    """One line of a file; `where` names it in messages."""

    where: str
    instruction: str
    input: str


def read_prompts(path: Path) -> list[PromptLine]:
    """The file's lines, all checked (raises DataError, PromptError)."""
    from gistkit.data.examples import iter_objects, opened, parse_example
    from gistkit.prompts import check_instruction, check_text

    prompts = []
    with opened(path) as file:
        for where, row in iter_objects(file, path):
            example = parse_example(row, where, required=("instruction",))
            with _at(where):
                check_instruction(example.instruction)
                check_text("input", example.input)
            prompts.append(PromptLine(where, example.instruction, example.input))
    return prompts


class Answering:
    """The answers to many prompts, in batches.

    Raises OptionError, and PromptError that names the line of a prompt that does not fit.
    """

    def __init__(
        self,
        model: "GistModel",
        prompts: Sequence[PromptLine],
        settings: Settings,
        *,
        batch_size: int = 8,
    ) -> None:
        self.prompts = prompts
        self._model, self._settings, self._batch_size = model, settings, batch_size
        k = model.check_k(settings.num_gist_tokens, allow_untrained=settings.allow_untrained)
        # the same longest answer for all lines, whatever the batches
        self._max_new_tokens = settings.longest_answer(model, _lengths(model, prompts, k))
        decisive = (
            model.fingerprint,
            model.config.template,
            k,
            self._max_new_tokens,
            settings.temperature,
            settings.seed,
        )
        self.run = hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:16]

    def results(self, start: int = 0) -> Iterator[list[Result]]:
        """The results from prompt number `start` on, a batch at a time."""
        from gistkit.evaluation.answers import Gists

        model, settings = self._model, self._settings
        gists = Gists(
            partial(settings.compress, model), [line.instruction for line in self.prompts[start:]]
        )
        for first in range(start, len(self.prompts), self._batch_size):
            batch = self.prompts[first : first + self._batch_size]
            rows = gists.take([line.instruction for line in batch])
            outputs = settings.generate(
                model,
                [line.input for line in batch],
                type(rows[0]).stack(rows),
                max_new_tokens=self._max_new_tokens,
                batch=first,
            )
            yield [
                {
                    "instruction": line.instruction,
                    "input": line.input,
                    "output": output,
                    **{name: number for name, number in sizes(gist).items() if name in REPORTED},
                    "run": self.run,
                }
                for line, output, gist in zip(batch, outputs, rows, strict=True)
            ]

    def write(
        self,
        out: Path,
        *,
        force: bool = False,
        progress: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Write all results to `out`; a run that was interrupted resumes.

        Args:
            force: start over where `out` has results of another run.
            progress: called with the number of results so far.

        Raises:
            SaveError: an interrupted run with other prompts, model or settings left results, or
                they cannot be written.
        """
        from gistkit.resumable import Journal

        with Journal(out, force=force) as journal:
            expected = [
                {"instruction": line.instruction, "input": line.input, "run": self.run}
                for line in self.prompts
            ]
            fits = len(journal.entries) <= len(expected) and all(
                prompt.items() <= entry.items()
                for prompt, entry in zip(expected, journal.entries, strict=False)
            )
            if not fits and not force:
                raise SaveError(
                    f"{journal.path} holds results of other prompts, another model or other "
                    "settings; remove it, or add `force=True` to start over"
                )
            if not fits:
                journal.restart()
            progress(len(journal.entries))
            for batch in self.results(len(journal.entries)):
                journal.append(*batch)
                progress(len(journal.entries))
            journal.finish()


def _lengths(model: "GistModel", prompts: Sequence[PromptLine], k: int) -> list[int]:
    """Tokens before each answer: gist and input (raises PromptError where they do not fit)."""
    limit = model.adapter.max_positions
    instructions: dict[str, int] = {}
    lengths = []
    for line in prompts:
        with _at(line.where):
            if line.instruction not in instructions:
                ids = model.encoder.instruction(line.instruction, k)
                instructions[line.instruction] = len(ids)
            lengths.append(k + len(model.encoder.input(line.input)))
            for what, tokens, spare in (
                ("instruction", instructions[line.instruction], 0),
                ("input", lengths[-1], 1),
            ):
                if limit is not None and tokens + spare > limit:
                    raise PromptError(
                        f"the {what} has {tokens - k} tokens; with {k} gist tokens that is more "
                        f"than the {limit} this model can place; shorten it"
                    )
    return lengths


@contextmanager
def _at(where: str) -> Iterator[None]:
    try:
        yield
    except PromptError as error:
        raise PromptError(f"{where}: {error}") from error
