"""Is this gist safe? Measured against its full prompt; see docs/fidelity.md."""

from gistkit.fidelity.measure import fidelity_of, measure_fidelity, with_fidelity
from gistkit.fidelity.score import MIN_FIDELITY, PARTS, SCHEMA_VERSION, Fidelity

__all__ = [
    "MIN_FIDELITY",
    "PARTS",
    "SCHEMA_VERSION",
    "Fidelity",
    "fidelity_of",
    "measure_fidelity",
    "with_fidelity",
]
