"""Is this gist safe? Measured against its full prompt; see docs/fidelity.md."""

from gistkit.fidelity.measure import (
    MIN_FIDELITY,
    PARTS,
    SCHEMA_VERSION,
    Fidelity,
    fidelity_of,
    measure_fidelity,
    with_fidelity,
)

__all__ = [
    "MIN_FIDELITY",
    "PARTS",
    "SCHEMA_VERSION",
    "Fidelity",
    "fidelity_of",
    "measure_fidelity",
    "with_fidelity",
]
