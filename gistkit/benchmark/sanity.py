"""Are activations and answers the same with the gist cache and without? Layer by layer.

Both compute the same numbers in a different order, so they differ by roundings of the precision. A
difference is measured at one token of one place (the keys of a layer, say), in roundings relative
to the size of that place's activations:

    rms(with - without at the token) / (eps * rms(without at all tokens))

`Tolerance` is the number of roundings allowed; `docs/benchmarking.md` has measurements.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gistkit.benchmark.files import GIST
from gistkit.benchmark.prompts import Prompts
from gistkit.benchmark.traces import Outputs, Trace, with_cache, without_cache
from gistkit.errors import PromptError
from gistkit.model import GistModel
from gistkit.models.inputs import check_numbers

SCHEMA_VERSION = 1
ROUNDINGS = 16.0
SEGMENTS = ("gist", "input", "output")

PAIRS: tuple[tuple[str, str], ...] = (
    ("Answer in one word.", "What is the capital of France?"),
    ("Say whether the review is positive or negative, and nothing else.", "I liked it."),
    ("Tell a story about a dog.", ""),
    (
        "Write down every number of the text in words, in the order in which they come, with a "
        "comma between them; leave out all that is no number.",
        "She had 3 apples, 2 pears and 14 plums, and gave 5 plums to her brother.",
    ),
)
"""Instructions and inputs of several lengths, checked where none are given."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One token of one place that is not the same.

    Attributes:
        place: part, layer and kind of activation; "answer" where greedy tokens differ.
        segment, position: gist, input or output, and which of its tokens.
        token: its text.
        roundings: how far it is off, in roundings; `allowed`: how far it may be.
    """

    place: str
    prompt: int
    segment: str
    position: int
    token: str
    roundings: float
    allowed: float

    def __str__(self) -> str:
        return (
            f"{self.place}: {self.segment} token {self.position} ({self.token!r}) of prompt "
            f"{self.prompt} is off by {self.roundings:.3g} roundings, of {self.allowed:.3g} allowed"
        )


@dataclass(frozen=True, slots=True)
class Check:
    """The result for one k.

    Attributes:
        together: whether prompts were read as one batch.
        worst: by place, the largest difference in roundings.
        first: the first difference in order of computation; None where all is the same.
        tokens: greedy tokens compared; `ties`: those where two logits are equal within roundings.
    """

    k: int
    together: bool
    worst: Mapping[str, float]
    first: Difference | None
    tokens: int
    ties: int


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far two correct computations may be apart; it follows from the precision alone.

    A layer's errors are independent, so they grow as the root of the number of layers. Half
    precisions add up in float32 and round once; float32 rounds every term of a sum.

    Attributes:
        terms: of the longest sum, where every term is rounded; else 1.
    """

    epsilon: float
    terms: int

    @classmethod
    def of(cls, model: GistModel) -> "Tolerance":
        half = model.hf_model.dtype.itemsize < torch.float32.itemsize
        widths = [p.shape[-1] for p in model.hf_model.parameters() if p.dim() > 1]
        return cls(torch.finfo(model.hf_model.dtype).eps, 1 if half else max(widths))

    def roundings(self, layer: int) -> float:
        """Roundings allowed in a layer, counted from 0."""
        return float(ROUNDINGS * ((1 + layer) * self.terms) ** 0.5)


def check(
    model: GistModel,
    pairs: Sequence[tuple[str, str]] = PAIRS,
    *,
    ks: Sequence[int] = (),
    max_new_tokens: int = 8,
) -> Iterator[Check]:
    """Check each k, with all pairs in one batch and with each alone.

    `ks` defaults to all that the model was trained for. Raises OptionError for a k below one,
    PromptError for a prompt that cannot be used or does not fit the model.
    """
    check_numbers(max_new_tokens=max_new_tokens)
    for k in ks or model.config.num_gist_tokens or (1,):
        model.check_k(k, allow_untrained=True)
        yield _check(model, pairs, k, max_new_tokens, together=True)
        if len(pairs) > 1:
            yield _check(model, pairs, k, max_new_tokens, together=False)


def report(model: GistModel, checks: Sequence[Check], named: str) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "model": named,
        "model_type": model.hf_model.config.model_type,
        "fingerprint": model.fingerprint,
        "precision": str(model.hf_model.dtype).removeprefix("torch."),
        "tolerance": asdict(Tolerance.of(model)),
        "passed": all(check.first is None for check in checks),
        "checks": [
            {
                **asdict(check),
                "passed": check.first is None,
                "message": None if check.first is None else str(check.first),
            }
            for check in checks
        ],
    }


def to_text(result: Mapping[str, Any]) -> str:
    lines = []
    for k in dict.fromkeys(check["k"] for check in result["checks"]):
        checks = [check for check in result["checks"] if check["k"] == k]
        worst = max(value for check in checks for value in check["worst"].values())
        failed = [f"FAILED: {check['message']}" for check in checks if not check["passed"]]
        tokens, ties = (sum(check[name] for check in checks) for name in ("tokens", "ties"))
        lines.append(
            f"k = {k}, {result['precision']}: at most {worst:.3g} roundings apart; {tokens} greedy "
            f"tokens, {ties} of them ties: {failed[0] if failed else 'passed'}"
        )
    return "\n".join(lines)


def _check(
    model: GistModel, pairs: Sequence[tuple[str, str]], k: int, new: int, *, together: bool
) -> Check:
    numbers = range(len(pairs))
    batches: list[Sequence[int]] = [numbers] if together else [[number] for number in numbers]
    found = [_batch(model, pairs, batch, k, new) for batch in batches]
    names = dict.fromkeys(name for result in found for name in result.worst)
    return Check(
        k,
        together,
        {name: max(result.worst.get(name, 0.0) for result in found) for name in names},
        next((result.first for result in found if result.first is not None), None),
        sum(result.tokens for result in found),
        sum(result.ties for result in found),
    )


@torch.no_grad()
def _batch(
    model: GistModel, pairs: Sequence[tuple[str, str]], numbers: Sequence[int], k: int, new: int
) -> Check:
    """Check the pairs of these numbers as one batch."""
    limit = model.adapter.max_positions
    for number in numbers:
        total = len(model.encoder.prompt(*pairs[number], k)) + new
        if limit is not None and total > limit:
            raise PromptError(
                f"prompt {number} and its answer are {total} tokens, more than the {limit} this "
                "model can place; leave it out or shorten it"
            )
    prompts = Prompts(
        model,
        [model.encoder.instruction(pairs[number][0], k) for number in numbers],
        [model.encoder.input(pairs[number][1]) for number in numbers],
        k,
    )
    gist = prompts.prepare(GIST)
    assert gist is not None
    outputs: Outputs = prompts.answer(gist, new).ids.tolist()
    comparison = _Comparison(
        prompts, outputs, numbers, Tolerance.of(model), without_cache(prompts, outputs)
    )
    worst, first = comparison.of_activations(with_cache(prompts, outputs, gist))
    wrong, ties = comparison.of_tokens()
    return Check(k, len(numbers) > 1, worst, first or wrong, new * len(numbers), ties)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """What is computed for a batch, against `full`, the trace of the pass without a cache."""

    prompts: Prompts
    outputs: Outputs
    numbers: Sequence[int]
    tolerance: Tolerance
    full: Trace

    def of_activations(self, cached: Trace) -> tuple[dict[str, float], Difference | None]:
        """The largest difference by place, and the first one that is not allowed."""
        worst: dict[str, float] = {}
        first: Difference | None = None
        assert cached.keys() == self.full.keys()
        for place, rows in self.full.items():
            whole = torch.cat([t.float() for row in rows for t in row.values()])
            unit = float(whole.square().mean().sqrt()) * self.tolerance.epsilon
            name, limit = str(place), self.tolerance.roundings(place.layer)
            for row, (found, expected) in enumerate(zip(cached[place], rows, strict=True)):
                for segment in [segment for segment in SEGMENTS if segment in expected]:
                    off = _roundings(found[segment], expected[segment], unit)
                    if not off:
                        continue
                    worst[name] = max(worst.get(name, 0.0), *off)
                    wrong = [number for number, value in enumerate(off) if not value <= limit]
                    if wrong and first is None:
                        position = len(self._ids(row, segment)) - len(off) + wrong[0]
                        first = self._difference(name, row, segment, position, off[wrong[0]], limit)
        return worst, first

    def of_tokens(self) -> tuple[Difference | None, int]:
        """The first greedy token that the full pass does not predict, and the ties before it."""
        place = next(place for place in self.full if place.what == "logits")
        limit, ties = 2 * self.tolerance.roundings(place.layer), 0  # two logits, each off by that
        for row, answer in enumerate(self.outputs):
            found = self.full[place][row]
            logits = found["output"].float()
            if "input" in found:  # of a decoder: the input's last token predicts the first new one
                logits = torch.cat([found["input"].float(), logits])[-len(answer) - 1 : -1]
            ids = torch.tensor(answer, device=logits.device)
            behind = logits.amax(-1) - logits.gather(1, ids[:, None])[:, 0]
            off = behind / (self.tolerance.epsilon * logits.square().mean().sqrt())
            for position, value in enumerate(off.tolist()):
                if not value <= limit:
                    return self._difference("answer", row, "output", position, value, limit), ties
            ties += int((off > 0).sum())
        return None, ties

    def _difference(
        self, place: str, row: int, segment: str, position: int, roundings: float, limit: float
    ) -> Difference:
        token_id = self._ids(row, segment)[position]
        token = str(self.prompts.model.tokenizer.convert_ids_to_tokens(token_id))
        return Difference(place, self.numbers[row], segment, position, token, roundings, limit)

    def _ids(self, row: int, segment: str) -> list[int]:
        if segment == "gist":
            return self.prompts.instructions[row][-self.prompts.k :]
        return self.prompts.inputs[row] if segment == "input" else self.outputs[row]


def _roundings(found: Tensor, expected: Tensor, unit: float) -> list[float]:
    """Of each token that both have (the last ones). NaN counts as infinitely far."""
    shared = min(len(found), len(expected))
    if not shared:
        return []
    off = found[-shared:].float() - expected[-shared:].float()
    values = off.square().mean(-1).sqrt() / max(unit, torch.finfo(torch.float32).tiny)
    rows: list[float] = values.nan_to_num(nan=float("inf")).tolist()
    return rows
