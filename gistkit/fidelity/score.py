"""Fidelity: one number in [0, 1] for a gist, the parts it is made of, and its JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite, prod
from typing import Any

from gistkit.errors import GistFileError

SCHEMA_VERSION = 1

SCORED = ("divergence", "top1", "prefix", "carried")
"""Parts of the score; the others tell what was lost."""

MIN_FIDELITY = 0.96
"""A gist below this is not safe; chosen in docs/fidelity.md."""

PARTS = (*SCORED, "likelihood", "numbers", "names", "negations")


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How well a gist stands for its instruction.

    Attributes:
        score: geometric mean of the `SCORED` parts that could be measured, in [0, 1].
        parts: by name of `PARTS`, in [0, 1]; None: the instruction gives nothing to measure.
        kl: mean KL(full prompt || gist) of a token, in nats.
        probes: how many answers were compared.
        tokens: how many tokens they have together.
        drawn: whether the model drew the probes, or somebody gave them.
        seed: of the drawing.
    """

    score: float
    parts: Mapping[str, float | None]
    kl: float
    probes: int
    tokens: int
    drawn: bool
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Everything, with `schema_version`."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "parts": dict(self.parts)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Fidelity":
        """What `to_json` wrote (raises GistFileError where it is something else)."""
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
                and all(_is_share(value) for value in (score, *parts.values()) if value is not None)
                and isfinite(kl)
            ):
                return cls(score, parts, kl, probes, tokens, drawn, seed)
        raise GistFileError(
            "the fidelity kept with this gist cannot be read; measure it again (gistkit check)"
        )


def score_of(parts: Mapping[str, float | None]) -> float:
    """Geometric mean of the scored parts that were measured: any of them at 0 makes it 0."""
    values = [value for name in SCORED if (value := parts[name]) is not None]
    return float(prod(values) ** (1 / len(values)))


def _is_share(value: object) -> bool:
    return isinstance(value, float) and 0 <= value <= 1
