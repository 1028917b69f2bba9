"""Answer all examples by one method under one budget; measure what is kept and how long it takes.

Every example is prepared alone, as a server would prepare a new instruction; answers come in
batches. Rows in which nothing is kept are answered without a prefix.

    answer_all    quality: answers, loss of the references, entries and bytes kept
    take_times    cost: the same rows, the methods in turn (`gistkit.timing`)
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from gistkit.compare.method import Method
from gistkit.errors import OptionError
from gistkit.gist import Prefix
from gistkit.model import GistModel
from gistkit.prompts import EncodedExample, Example
from gistkit.timing import interleave, synchronize


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results of a method on the first examples; sequences hold one value a row.

    Attributes:
        budget: k; None where the method has none.
        missing: why this model or budget cannot be used; "" where it can.
        answers: greedy.
        kept_entries: cache entries kept, the template's included.
        answer_seconds: a row's share of its batch.
        loss: of the reference, nats, summed over `loss_tokens` tokens.
        loss_tokens: 0 where a row is too long to be scored, or its output merges with its prompt.
    """

    method: str
    budget: int | None
    missing: str = ""
    answers: Sequence[str] = ()
    kept_entries: Sequence[int] = ()
    kept_bytes: Sequence[int] = ()
    prepare_seconds: Sequence[float] = ()
    answer_seconds: Sequence[float] = ()
    loss: Sequence[float] = ()
    loss_tokens: Sequence[int] = ()

    def is_whole(self, rows: int) -> bool:
        """Whether it holds a value of every kind for each of its rows, at least one of `rows`."""
        count = len(self.answers)
        numbers = (
            self.kept_entries, self.kept_bytes, self.prepare_seconds, self.answer_seconds,
            self.loss, self.loss_tokens,
        )  # fmt: skip
        return (
            0 < count <= rows
            and all(isinstance(answer, str) for answer in self.answers)
            and all(len(values) == count for values in numbers)
            and all(isinstance(value, int | float) for values in numbers for value in values)
        )


def answer_all(
    model: GistModel,
    examples: Sequence[Example],
    method: Method,
    budget: int,
    *,
    batch_size: int = 8,
    max_new_tokens: int = 128,
    done: Callable[[int], object] = lambda rows: None,
) -> Outcome:
    """Prepare and answer every example, or the method's `most_rows` first ones.

    Args:
        done: called with the number of rows just prepared or answered; each counts twice.

    Raises:
        OptionError: an encoder-decoder: it has no prompt cache to compare with.
        PromptError: an example cannot be a prompt.
    """
    if not model.adapter.can_cache_prompts:
        raise OptionError("compare needs a decoder-only model: this one cannot cache a prompt")
    rows = examples[: method.most_rows]
    prefixes: list[Prefix | None] = []
    seconds: list[float] = []
    reported_budget = budget if method.budgeted else None
    for example in rows:
        start = time.perf_counter()
        try:
            prefixes.append(method.prepare(model, example.instruction, budget))
        except OptionError as error:  # this k was not trained, these keys cannot be turned
            return Outcome(method.name, reported_budget, missing=str(error))
        seconds.append(time.perf_counter() - start)
        done(1)
    answers, answer_seconds = [""] * len(rows), [0.0] * len(rows)
    losses, tokens = [0.0] * len(rows), [0] * len(rows)
    encoded = model.encoder.examples(rows)
    for batch in _batches(model, rows, prefixes, batch_size):
        start = time.perf_counter()
        prefix = _stacked([prefixes[row] for row in batch])
        found = _answer(model, [rows[row].input for row in batch], prefix, max_new_tokens)
        share = (time.perf_counter() - start) / len(batch)
        scored = _loss(model, [encoded[row] for row in batch], prefix)
        for row, answer, (loss, count) in zip(batch, found, scored, strict=True):
            answers[row], answer_seconds[row], losses[row], tokens[row] = answer, share, loss, count
        done(len(batch))
    return Outcome(
        method=method.name,
        budget=reported_budget,
        answers=answers,
        kept_entries=[0 if prefix is None else prefix.num_tokens for prefix in prefixes],
        kept_bytes=[0 if prefix is None else prefix.num_bytes for prefix in prefixes],
        prepare_seconds=seconds,
        answer_seconds=answer_seconds,
        loss=losses,
        loss_tokens=tokens,
    )


def _batches(
    model: GistModel, rows: Sequence[Example], prefixes: Sequence[Prefix | None], size: int
) -> list[list[int]]:
    """Row numbers, those of like length together; rows with and without a prefix apart."""
    lengths = [len(model.encoder.input(example.input)) for example in rows]
    batches = []
    for bare in (False, True):
        these = [row for row in range(len(rows)) if (prefixes[row] is None) == bare]
        these.sort(key=lengths.__getitem__)
        batches += [these[i : i + size] for i in range(0, len(these), size)]
    return batches


def _stacked(prefixes: Sequence[Prefix | None]) -> Prefix | None:
    """One batch of them; a gist is a prefix like the others."""
    rows = [prefix for prefix in prefixes if prefix is not None]
    return type(rows[0]).stack(rows) if rows else None


def _answer(
    model: GistModel, inputs: Sequence[str], prefix: Prefix | None, max_new_tokens: int
) -> list[str]:
    limit = model.adapter.max_positions
    if limit is not None:
        taken = max(len(model.encoder.input(text)) for text in inputs)
        taken += 0 if prefix is None else prefix.num_tokens
        max_new_tokens = min(max_new_tokens, limit - taken)
    if max_new_tokens < 1:
        return [""] * len(inputs)
    return model.generate(list(inputs), prefix, max_new_tokens=max_new_tokens)


@torch.no_grad()
def _loss(
    model: GistModel, rows: Sequence[EncodedExample | None], prefix: Prefix | None
) -> list[tuple[float, int]]:
    """Cross-entropy of each row's output in nats, and its tokens."""
    prefix_length = 0 if prefix is None else prefix.num_tokens
    limit = model.adapter.max_positions
    ids = [[] if row is None else row.input + row.completion for row in rows]
    scored = [
        (number, row)
        for number, row in enumerate(rows)
        if row is not None
        and ids[number]
        and (limit is None or prefix_length + len(ids[number]) <= limit)
    ]
    found = [(0.0, 0)] * len(rows)
    if not scored:
        return found
    numbers = [number for number, _ in scored]
    if prefix is not None:
        prefix = prefix.select(torch.tensor(numbers))
    padded, padding = model.pad([ids[number] for number in numbers])
    output = model.adapter.read(padded, padding, prefix, gist_id=model.gist_id)
    logits = output["logits"][:, :-1].float().log_softmax(-1)
    right = logits.gather(-1, padded[:, 1:, None])[..., 0]
    for row_logits, (number, row) in zip(right, scored, strict=True):
        count = len(row.completion)
        found[number] = (-float(row_logits[-count:].sum()), count)
    return found


@dataclass(frozen=True, slots=True)
class Times:
    """Medians over the rounds, in seconds.

    Attributes:
        prepare: to make what is kept; None where that is too slow to be repeated.
        first_token: from an input to its first new token, on top of what is kept.
    """

    prepare: float | None
    first_token: float


def take_times(
    model: GistModel, examples: Sequence[Example], runs: Sequence[tuple[Method, int]]
) -> list[Times | None]:
    """One example a round, the first once more to warm up; None where a method cannot be run.

    Methods that are slow to prepare (`most_rows`) prepare only the first example.
    """
    sides: dict[str, Callable[[], tuple[float, float]]] = {}
    for number, (method, budget) in enumerate(runs):
        try:
            first = method.prepare(model, examples[0].instruction, budget)
        except OptionError:
            continue
        rows = iter((examples[0], *examples))
        sides[str(number)] = partial(_take_time, model, rows, method, budget, first)
    samples = interleave(sides, rounds=len(examples), warmup=1, seed=0)
    times: list[Times | None] = [None] * len(runs)
    for name, pairs in samples.items():
        prepare, first_token = (median(values) for values in zip(*pairs, strict=True))
        repeated = runs[int(name)][0].most_rows is None
        times[int(name)] = Times(prepare if repeated else None, first_token)
    return times


def _take_time(
    model: GistModel, rows: Iterator[Example], method: Method, budget: int, prefix: Prefix | None
) -> tuple[float, float]:
    example = next(rows)
    start = time.perf_counter()
    if method.most_rows is None:
        prefix = method.prepare(model, example.instruction, budget)
        synchronize(model.device)
    prepared = time.perf_counter()
    model.generate(example.input, prefix, max_new_tokens=1)
    return prepared - start, time.perf_counter() - prepared
