"""What all routes share: engine, store and settings; and the gist that a request uses.

status of a request's gist
    used      it replaces the instruction
    off       the request has no instruction, or wants no gist
    refused   it could not be used: the instruction is read in full
"""

import asyncio
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from gistkit.errors import (
    GistError,
    GistFileError,
    GistMismatchError,
    OptionError,
    PromptError,
    SaveError,
    UnavailableError,
)
from gistkit.fidelity import fidelity_of
from gistkit.gist import Gist, instruction_hash
from gistkit.serving.api_errors import ApiError
from gistkit.serving.engine import Engine
from gistkit.serving.observability import Metrics, log
from gistkit.serving.settings import Settings
from gistkit.store import GistStore


@dataclass(frozen=True, slots=True)
class ResolvedGist:
    """The gist of a request, or why there is none; an unsafe gist has an id, but no `gist`."""

    status: Literal["used", "off", "refused"]
    reason: str | None = None
    id: str | None = None
    gist: Gist | None = None
    instruction_tokens: int = 0

    def to_json(self) -> dict[str, Any]:
        """The field `gist` of a response."""
        return {
            "id": self.id,
            "k": self.gist.num_tokens if self.gist is not None else None,
            "instruction_tokens": self.instruction_tokens or None,
            "status": self.status,
            "reason": self.reason,
        }


@dataclass(slots=True)
class Service:
    """One server; routes find it as `request.app.state.service`. The engine has the same store."""

    engine: Engine
    store: GistStore
    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    ready: bool = False
    draining: bool = False
    running: int = 0
    _sample: Gist | None = None

    async def resolve_gist(self, instruction: str, wanted: str, k: int | None) -> ResolvedGist:
        """The gist for an instruction.

        Args:
            instruction: "" where the request has none, or a blank one.
            wanted: "auto", "off" or an id.
            k: number of gist tokens of a new one; None: the model's default.

        Raises:
            ApiError, GistError: the gist cannot be used, and there is no instruction to read.
            BusyError: too many instructions are waiting.
        """
        if wanted == "off":
            return ResolvedGist("off", "the request says so")
        if wanted == "auto" and not instruction:
            return ResolvedGist("off", "there is no instruction")
        # gists may be evicted: a request that includes the text is still answered
        auto = wanted == "auto"
        fall_back = (PromptError, OptionError, SaveError) if auto else (GistError,)
        try:
            if auto:
                id, gist = await self.engine.compress(instruction, k)
            else:
                id, gist = wanted, await self._named(wanted, instruction, k)
        except fall_back as error:
            if not instruction:
                raise
            return ResolvedGist("refused", str(error), None if auto else wanted)
        (row,) = gist.provenance
        reason = None if row.fidelity is None else self._unsafe(gist)
        if reason is None:
            return ResolvedGist("used", None, id, gist, row.instruction_tokens)
        if not instruction:
            raise ApiError(
                400,
                f"this gist is not safe: {reason}; send the instruction's text to get an answer "
                "from it",
                code="gist_below_min_fidelity",
                param="gist",
            )
        return ResolvedGist("refused", reason, id, None, row.instruction_tokens)

    async def load_gist(self, id: str) -> Gist:
        """As `get_gist`; raises GistMismatchError too: it is another model's."""
        gist = await self.get_gist(id)
        await self.check_gist(gist)
        return gist

    async def get_gist(self, id: str) -> Gist:
        """A stored gist of any model (raises GistFileError, UnavailableError)."""

        def read() -> Gist:
            try:
                return self.store.load(id)
            except GistFileError as error:
                log.info("gist not found", extra={"facts": {"why": str(error)}})
                try:
                    self.store.find(id)
                except GistFileError as broken:
                    raise UnavailableError("the store cannot be read at the moment") from broken
                raise GistFileError(f"this server has no gist {id}") from error

        return await asyncio.to_thread(read)

    async def check_gist(self, gist: Gist) -> None:
        """Raise GistMismatchError unless a gist has the form of this model's gists.

        A file's fingerprint is only a claim, and activations of another shape would break the
        answers of all requests in the same batch.
        """
        own = self._sample = self._sample or await self._make_sample()
        gist.check(own.model, own.template, 1)
        if _form(gist) != _form(own):
            raise GistMismatchError(
                "this gist's activations do not have this model's shapes; compress the "
                "instruction with this model"
            )

    async def _named(self, id: str, instruction: str, k: int | None) -> Gist:
        gist = await self.load_gist(id)
        (row,) = gist.provenance
        if instruction and row.instruction_sha256 != instruction_hash(instruction):
            raise GistMismatchError("this gist was made of another instruction than the request's")
        if k is not None and k != gist.num_tokens:
            raise GistMismatchError(f"this gist has {gist.num_tokens} tokens, not {k}")
        return gist

    def _unsafe(self, gist: Gist) -> str | None:
        """Why a measured gist must not be used, or None."""
        try:
            fidelity = fidelity_of(gist)
        except GistFileError:
            return None
        least = self.settings.min_fidelity
        if fidelity is None or fidelity.score >= least:
            return None
        return f"its fidelity {fidelity.score:.3f} is below {least:g}, this server's minimum"

    async def _make_sample(self) -> Gist:
        # a random instruction, so that it is no client's gist that is removed
        id, gist = await self.engine.compress(f"Answer {secrets.token_hex(8)}.")
        with suppress(SaveError):
            await asyncio.to_thread(self.store.remove, id)
        return gist


def check_finite(gist: Gist) -> None:
    """Raise GistMismatchError for activations that are not finite."""
    if not all(bool(torch.isfinite(tensor).all()) for tensor in gist.tensors.values()):
        raise GistMismatchError("this gist holds activations that are not finite numbers")


def _form(gist: Gist) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Names, types and shapes, except for the number of gist tokens."""
    return {
        name: (tensor.dtype, (*tensor.shape[1:-2], tensor.shape[-1]))
        for name, tensor in gist.tensors.items()
    }
