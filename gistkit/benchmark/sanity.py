"""Are activations and answers the same with the gist cache and without? Layer by layer.

Both ways compute the same numbers in another order, so they differ by roundings, and by how much
depends on the precision alone. A difference is measured at one token of one place (a layer's keys,
say), in roundings of the precision, relative to the size of that place's activations:

    rms(with - without at the token) / (eps * rms(without at all tokens))

`Tolerance` says how many are right; `docs/benchmarking.md` says what was measured.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gistkit.benchmark.probes import Prompts, Trace, with_cache, without_cache
from gistkit.errors import PromptError
from gistkit.gist import Gist
from gistkit.model import GistModel
from gistkit.models.inputs import check_numbers, decoding_options

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
        prompt: number of the prompt.
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
            f"{self.prompt} is off by {self.roundings:.3g} roundings; {self.allowed:.3g} are right"
        )


@dataclass(frozen=True, slots=True)
class Check:
    """What came out for one k.

    Attributes:
        k: gist tokens.
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
    """How far two right computations may be apart; it follows from the precision alone.

    A layer's errors are independent, so they grow as the root of the number of layers. Half
    precisions add up in float32 and round once; float32 rounds every term of a sum.

    Attributes:
        epsilon: of the precision.
        terms: of the longest sum, where every term is rounded; else 1.
    """

    epsilon: float
    terms: int

    @classmethod
    def of(cls, model: GistModel) -> "Tolerance":
        """That of a model's precision and width."""
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

    Args:
        pairs: instructions and inputs.
        ks: numbers of gist tokens; default: all the model was trained for.
        max_new_tokens: greedy tokens of each answer.

    Raises:
        OptionError: a k below one.
        PromptError: a prompt cannot be used, or does not fit the model.
    """
    check_numbers(max_new_tokens=max_new_tokens)
    for k in ks or model.config.num_gist_tokens or (1,):
        yield _check(model, pairs, k, max_new_tokens, together=True)
        if len(pairs) > 1:
            yield _check(model, pairs, k, max_new_tokens, together=False)


def report(model: GistModel, checks: Sequence[Check], named: str) -> dict[str, Any]:
    """All checks as JSON values."""
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


def _check(
    model: GistModel,
    pairs: Sequence[tuple[str, str]],
    k: int,
    new: int,
    *,
    together: bool,
) -> Check:
    numbers = list(range(len(pairs)))
    batches = [numbers] if together else [[number] for number in numbers]
    found = [_batch(model, [pairs[i] for i in batch], batch, k, new) for batch in batches]
    worst: dict[str, float] = {}
    for one in found:
        for name, value in one.worst.items():
            worst[name] = max(value, worst.get(name, 0.0))
    return Check(
        k,
        together,
        worst,
        next((one.first for one in found if one.first is not None), None),
        sum(one.tokens for one in found),
        sum(one.ties for one in found),
    )


@torch.no_grad()
def _batch(
    model: GistModel,
    pairs: Sequence[tuple[str, str]],
    numbers: Sequence[int],
    k: int,
    new: int,
) -> Check:
    instructions, inputs = ([pair[i] for pair in pairs] for i in (0, 1))
    _check_fits(model, pairs, numbers, k, new)
    gist = model.compress(instructions, num_gist_tokens=k, allow_untrained=True)
    prompts = Prompts(
        [model.encoder.instruction(text, k) for text in instructions],
        [model.encoder.input(text) for text in inputs],
        _answers(model, inputs, gist, new),
        k,
    )
    tolerance = Tolerance.of(model)
    ours, theirs = with_cache(model, prompts, gist), without_cache(model, prompts)
    worst, first = _compare(model, prompts, numbers, ours, theirs, tolerance)
    wrong, ties = _compare_tokens(model, prompts, numbers, theirs, tolerance)
    return Check(k, len(pairs) > 1, worst, first or wrong, new * len(pairs), ties)


def _check_fits(
    model: GistModel, pairs: Sequence[tuple[str, str]], numbers: Sequence[int], k: int, new: int
) -> None:
    limit = model.adapter.max_positions
    for number, (instruction, text) in zip(numbers, pairs, strict=True):
        total = len(model.encoder.prompt(instruction, text, k)) + new
        if limit is not None and total > limit:
            raise PromptError(
                f"prompt {number} and its answer are {total} tokens, more than the {limit} this "
                "model can place; leave it out or shorten it"
            )


def _answers(model: GistModel, inputs: Sequence[str], gist: Gist, new: int) -> list[list[int]]:
    """Greedy ids from the gist, `new` for each, whatever they say."""
    ids, padding = model.pad([model.encoder.input(text) for text in inputs])
    options = decoding_options(
        max_new_tokens=new,
        do_sample=False,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        num_beams=1,
        num_return_sequences=1,
        streamed=False,
        pad_token_id=model.tokenizer.pad_token_id,
        eos_token_id=never(model),
    )
    answers = model.adapter.generate(ids, padding, gist, options, gist_id=model.gist_id)
    rows: list[list[int]] = answers.tolist()
    return rows


def never(model: GistModel) -> int:
    """An id no model says: with it as the end, an answer has as many tokens as were asked for."""
    return int(model.hf_model.config.get_text_config().vocab_size)


def _compare(
    model: GistModel,
    prompts: Prompts,
    numbers: Sequence[int],
    ours: Trace,
    theirs: Trace,
    tolerance: Tolerance,
) -> tuple[dict[str, float], Difference | None]:
    worst: dict[str, float] = {}
    first: Difference | None = None
    assert ours.keys() == theirs.keys()
    for place, rows in theirs.items():
        scale = torch.cat([t.float() for row in rows for t in row.values()]).square().mean().sqrt()
        unit = float(scale) * tolerance.epsilon
        for row, (mine, other) in enumerate(zip(ours[place], rows, strict=True)):
            for segment in SEGMENTS:
                if segment not in other:
                    continue
                off = _roundings(mine[segment], other[segment], unit)
                if not off:
                    continue
                name, limit = str(place), tolerance.roundings(place.layer)
                worst[name] = max(worst.get(name, 0.0), *off)
                wrong = [number for number, value in enumerate(off) if not value <= limit]
                if wrong and first is None:
                    last = len(_ids(prompts, row, segment)) - len(off)
                    first = _difference(
                        model,
                        prompts,
                        numbers,
                        (str(place), row, segment, last + wrong[0]),
                        off[wrong[0]],
                        limit,
                    )
    return worst, first


def _roundings(ours: Tensor, theirs: Tensor, unit: float) -> list[float]:
    """Of each token; of those that both have, which are the last. NaN counts as infinitely far."""
    shared = min(len(ours), len(theirs))
    if not shared:
        return []
    off = ours[-shared:].float() - theirs[-shared:].float()
    values = off.square().mean(-1).sqrt() / max(unit, torch.finfo(torch.float32).tiny)
    rows: list[float] = values.nan_to_num(nan=float("inf")).tolist()
    return rows


def _compare_tokens(
    model: GistModel,
    prompts: Prompts,
    numbers: Sequence[int],
    theirs: Trace,
    tolerance: Tolerance,
) -> tuple[Difference | None, int]:
    """The first greedy token that the full pass would not say, but where two logits tie."""
    place = next(place for place in theirs if place.what == "logits")
    limit, ties = 2 * tolerance.roundings(place.layer), 0  # two logits, each off by so much
    decoder = "input" in theirs[place][0]
    for row, answer in enumerate(prompts.outputs):
        logits = theirs[place][row]["output"].float()
        if decoder:  # the token that predicts the first new one is the last of the input
            logits = torch.cat([theirs[place][row]["input"].float(), logits])[-len(answer) - 1 : -1]
        said = torch.tensor(answer, device=logits.device)
        behind = logits.amax(-1) - logits.gather(1, said[:, None])[:, 0]
        off = (behind / (tolerance.epsilon * logits.square().mean().sqrt())).tolist()
        for position, value in enumerate(off):
            if not value <= limit:
                where = ("answer", row, "output", position)
                return _difference(model, prompts, numbers, where, value, limit), ties
        ties += sum(value > 0 for value in off)
    return None, ties


def _difference(
    model: GistModel,
    prompts: Prompts,
    numbers: Sequence[int],
    where: tuple[str, int, str, int],
    roundings: float,
    limit: float,
) -> Difference:
    place, row, segment, position = where
    token = model.tokenizer.convert_ids_to_tokens(_ids(prompts, row, segment)[position])
    return Difference(place, numbers[row], segment, position, str(token), roundings, limit)


def _ids(prompts: Prompts, row: int, segment: str) -> list[int]:
    parts = {"input": prompts.inputs, "output": prompts.outputs}
    return parts[segment][row] if segment in parts else prompts.instructions[row][-prompts.k :]
