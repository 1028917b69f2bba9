"""Is this gist safe? Its predictions against those of the full prompt, on probe inputs.

    fidelity = measure_fidelity(model, "Everything costs nine coins. You are Nora.", gist)
    fidelity.score, fidelity.parts["names"]

Formulas and how well they predict a wrong answer: docs/fidelity.md.

Shapes: T tokens of an answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import exp, isfinite, prod
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from gistkit.errors import GistFileError, GistMismatchError, OptionError
from gistkit.fidelity import details
from gistkit.fidelity.reading import Prompt, Reading, read_along, sample_probes
from gistkit.gist import Gist, instruction_hash
from gistkit.model import GistModel

SCHEMA_VERSION = 1

SCORED = ("divergence", "top1", "prefix", "carried")
"""Parts of the score; the others say what was lost."""

MIN_FIDELITY = 0.96
"""A gist below this is not safe; chosen in docs/fidelity.md."""

PARTS = (*SCORED, "likelihood", "numbers", "names", "negations")

MARGIN = 0.1
"""Nats by which the instruction must raise a token's log-probability for the token to count."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How well a gist stands for its instruction.

    Attributes:
        score: geometric mean of the `SCORED` parts that could be measured, in [0, 1].
        parts: by name of `PARTS`, in [0, 1]; None: the instruction gives nothing to measure.
        kl: mean KL(full prompt || gist) of a token, in nats.
        probes: how many answers were compared.
        tokens: how many tokens they have together.
        drawn: whether the probes were sampled from the model, or given.
    """

    score: float
    parts: Mapping[str, float | None]
    kl: float
    probes: int
    tokens: int
    drawn: bool
    seed: int

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "parts": dict(self.parts)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Fidelity":
        """Read what `to_json` wrote (raises GistFileError)."""
        match found:
            case {
                "schema_version": 1,
                "score": float(score),
                "parts": dict(parts),
                "kl": float(kl),
                "probes": int(probes),
                "tokens": int(tokens),
                "drawn": bool(drawn),
                "seed": int(seed),
            } if (
                parts.keys() == set(PARTS)
                and all(
                    value is None or (isinstance(value, float) and 0 <= value <= 1)
                    for value in (score, *parts.values())
                )
                and isfinite(kl)
            ):
                return cls(score, parts, kl, probes, tokens, drawn, seed)
        raise GistFileError(
            "the fidelity saved with this gist cannot be read; measure it again (gistkit check)"
        )


def measure_fidelity(
    model: GistModel,
    instruction: str,
    gist: Gist,
    *,
    probes: Sequence[str] | None = None,
    num_probes: int = 8,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> Fidelity:
    """Compare what a gist predicts with what its full prompt predicts.

    The full prompt answers each probe greedily; the gist, no prompt at all and (where there are
    negations) the prompt without them read along.

    Args:
        instruction: what the gist was made of.
        gist: one row.
        probes: inputs like those expected; default: sampled from the model under the full prompt.

    Raises:
        GistMismatchError: several rows, another model's gist, or one of another instruction.
        OptionError: no probes, or a number below one.
        PromptError: a probe holds `<GIST>` or does not fit.
    """
    if len(gist) != 1:
        raise GistMismatchError(f"{len(gist)} gists; measure one at a time (gist[0])")
    gist.check(model.fingerprint, model.config.template, 1)
    if gist.provenance[0].instruction_sha256 != instruction_hash(instruction):
        raise GistMismatchError("this gist was made of another instruction; give that one")
    if min(num_probes, max_new_tokens) < 1 or (probes is not None and not probes):
        raise OptionError("at least one probe and one new token are needed")
    k = gist.num_tokens
    drawn = probes is None
    if probes is None:
        probes = sample_probes(model, instruction, k, n=num_probes, seed=seed)
    inputs = list(dict.fromkeys(probes))
    plain = details.without_negations(instruction)
    readings: list[Reading] = []
    for group in _groups(model, inputs):
        ids = [model.encoder.input(text) for text in group]
        readers = {"gist": [Prompt(row, gist) for row in ids], "none": [Prompt(r) for r in ids]}
        if plain is not None:
            readers["plain"] = [Prompt(model.encoder.prompt(plain, x, k)) for x in group]
        leaders = [Prompt(model.encoder.prompt(instruction, x, k)) for x in group]
        readings += read_along(model, leaders, readers, max_new_tokens=max_new_tokens)
    kl = float(torch.cat([reading.divergence["gist"] for reading in readings]).mean())
    parts = {
        "divergence": exp(-kl),
        "top1": float(torch.cat([reading.agrees["gist"] for reading in readings]).float().mean()),
        "prefix": fmean(  # share of the answer up to the first token that the gist would not choose
            float(reading.agrees["gist"].long().cumprod(0).float().mean()) for reading in readings
        ),
        "likelihood": exp(
            float(torch.cat([reading.others["gist"] for reading in readings]).mean())
        ),
        "carried": _carried(readings, "none"),
        "numbers": _spelled(model, readings, details.numbers(instruction)),
        "names": _spelled(model, readings, details.names(instruction)),
        "negations": None if plain is None else _carried(readings, "plain"),
    }
    scored = [value for name in SCORED if (value := parts[name]) is not None]
    return Fidelity(
        score=float(prod(scored) ** (1 / len(scored))),
        parts=parts,
        kl=kl,
        probes=len(readings),
        tokens=sum(len(reading.tokens) for reading in readings),
        drawn=drawn,
        seed=seed,
    )


def with_fidelity(gist: Gist, fidelity: Fidelity) -> Gist:
    """The gist (one row) with its fidelity, which is saved with it."""
    (row,) = gist.provenance
    return replace(gist, provenance=(replace(row, fidelity=fidelity.to_json()),))


def fidelity_of(gist: Gist) -> Fidelity | None:
    """The fidelity saved with a gist of one row, if it was measured (raises GistFileError)."""
    found = gist.provenance[0].fidelity
    return None if found is None else Fidelity.from_json(found)


def _groups(model: GistModel, inputs: Sequence[str]) -> list[list[str]]:
    """All together, or by length where the family cannot mix lengths."""
    if model.adapter.rows_differ:
        return [list(inputs)]
    by_length: dict[int, list[str]] = {}
    for text in inputs:
        by_length.setdefault(len(model.encoder.input(text)), []).append(text)
    return list(by_length.values())


def _carried(
    readings: Sequence[Reading], baseline: str, where: Sequence[Tensor] | None = None
) -> float | None:
    """Share of the information over `baseline` that the gist keeps, of the tokens in `where`."""
    whole = carried = 0.0
    for number, reading in enumerate(readings):
        gain = reading.own - reading.others[baseline]
        counts = gain > MARGIN if where is None else (gain > MARGIN) & where[number]
        own = (reading.others["gist"] - reading.others[baseline]).clamp(min=0)
        whole += float(gain[counts].sum())
        carried += float(torch.minimum(own, gain)[counts].sum())
    return min(1.0, carried / whole) if whole else None


def _spelled(model: GistModel, readings: Sequence[Reading], words: Sequence[str]) -> float | None:
    """As `_carried`, of the tokens that spell one of these words of the instruction."""
    if not words:
        return None
    return _carried(
        readings, "none", [_spelling(model, reading.tokens, words) for reading in readings]
    )


def _spelling(model: GistModel, tokens: list[int], words: Sequence[str]) -> Tensor:
    """[T] whether a token spells (part of) one of the words."""
    texts = [
        str(model.tokenizer.decode(tokens[:n], skip_special_tokens=True))
        for n in range(len(tokens) + 1)
    ]
    found = details.spans(words, texts[-1])
    return torch.tensor(
        [
            any(start < len(after) and len(before) < end for start, end in found)
            and len(before) < len(after)
            for before, after in pairwise(texts)
        ]
    )
