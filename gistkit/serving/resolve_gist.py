"""Which gist stands for a request's instruction, if any, and why not.

used      the gist stands for the instruction
off       nobody asked for one, or there is no instruction
refused   it could not be used: the instruction is read in full
"""

from dataclasses import dataclass
from typing import Any, Literal

from gistkit.errors import (
    GistError,
    GistFileError,
    GistMismatchError,
    OptionError,
    PromptError,
    SaveError,
)
from gistkit.fidelity import fidelity_of
from gistkit.gist import Gist, instruction_hash
from gistkit.serving.failures import ApiError
from gistkit.serving.service import Service

Status = Literal["used", "off", "refused"]


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen.

    Attributes:
        status: see above.
        reason: where it is not used: why.
        id: of the gist, where one was found.
        gist: what stands for the instruction; None: the instruction itself.
        instruction_tokens: P of the gist, 0 without one.
    """

    status: Status
    reason: str | None = None
    id: str | None = None
    gist: Gist | None = None
    instruction_tokens: int = 0

    @property
    def replaced(self) -> int:
        """Tokens of the instruction that need not be read."""
        return self.instruction_tokens if self.gist is not None else 0

    def to_json(self) -> dict[str, Any]:
        """The `gist` of a response."""
        return {
            "id": self.id,
            "k": self.gist.num_tokens if self.gist is not None else None,
            "instruction_tokens": self.instruction_tokens or None,
            "status": self.status,
            "reason": self.reason,
        }


async def choose(service: Service, instruction: str, asked: str, k: int | None) -> Choice:
    """The gist for an instruction.

    Args:
        instruction: "" where the request has none, or a blank one.
        asked: "auto", "off" or an id.
        k: how many gist tokens a new one is to have; None: the model's default.

    Raises:
        ApiError, GistError: a gist that cannot be used, and no instruction to read instead.
        BusyError: too much waits to be compressed.
    """
    if asked == "off":
        return Choice("off", "the request says so")
    if asked == "auto":
        if not instruction:
            return Choice("off", "there is no instruction")
        try:
            id, gist = await service.engine.compress(instruction, k)
        except (PromptError, OptionError, SaveError) as error:
            return Choice("refused", str(error))
        return _measured(service, instruction, id, gist)
    try:
        gist = await _named(service, instruction, asked, k)
    except GistError as error:
        # ids may be evicted: who sends the text along is answered all the same
        if not instruction:
            raise
        return Choice("refused", str(error), asked)
    return _measured(service, instruction, asked, gist)


async def _named(service: Service, instruction: str, id: str, k: int | None) -> Gist:
    gist = await service.load(id)
    (row,) = gist.provenance
    if instruction and row.instruction_sha256 != instruction_hash(instruction):
        raise GistMismatchError("this gist was made of another instruction than the request's")
    if k is not None and k != gist.num_tokens:
        raise GistMismatchError(f"this gist has {gist.num_tokens} tokens, not {k}")
    return gist


def _measured(service: Service, instruction: str, id: str, gist: Gist) -> Choice:
    tokens = gist.provenance[0].instruction_tokens
    least = service.settings.min_fidelity
    try:
        known = fidelity_of(gist)
    except GistFileError:
        known = None
    if known is None or known.score >= least:
        return Choice("used", None, id, gist, tokens)
    reason = f"its fidelity {known.score:.3f} is below {least:g} (--min-fidelity)"
    if not instruction:
        raise ApiError(
            400,
            f"this gist is not safe: {reason}; send the instruction's text to be answered from it",
            code="gist_below_min_fidelity",
            param="gist",
        )
    return Choice("refused", reason, id, None, tokens)
