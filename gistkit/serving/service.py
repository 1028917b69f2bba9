"""What the routes share: the engine, the store, and what the server may do."""

import asyncio
import secrets
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from fastapi import Request

from gistkit.errors import GistFileError, GistMismatchError, SaveError, UnavailableError
from gistkit.gist import Gist
from gistkit.serving.engine import Engine
from gistkit.serving.gate import Drain
from gistkit.serving.limits import Settings
from gistkit.serving.logs import log
from gistkit.serving.metrics import Metrics
from gistkit.store import GistStore


@dataclass(slots=True)
class Service:
    """One server.

    Attributes:
        engine: what compresses and answers.
        store: the engine's, too.
        ready: whether the engine has started.
    """

    engine: Engine
    store: GistStore
    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    drain: Drain = field(default_factory=Drain)
    ready: bool = False
    _own: Gist | None = None

    async def load(self, id: str) -> Gist:
        """A stored gist that this model can take.

        Raises:
            GistFileError, UnavailableError: as `get`.
            GistMismatchError: it is another model's.
        """
        gist = await self.get(id)
        await self.check(gist)
        return gist

    async def get(self, id: str) -> Gist:
        """A stored gist, whatever model it is of.

        Raises:
            GistFileError: there is none.
            UnavailableError: the store cannot be read at the moment.
        """

        def read() -> Gist:
            try:
                return self.store.load(id)
            except GistFileError as error:
                log.info("a gist is not there", extra={"facts": {"why": str(error)}})
                try:
                    self.store.find(id)
                except GistFileError as broken:
                    raise UnavailableError("the store cannot be read at the moment") from broken
                raise GistFileError(f"this server has no gist {id}") from error

        return await asyncio.to_thread(read)

    async def check(self, gist: Gist) -> None:
        """Raise GistMismatchError unless a gist looks like those that this model makes.

        A file's fingerprint is only what the file says; activations of another shape would end the
        answers of everybody in the same batch.
        """
        own = self._own = self._own or await self._sample()
        gist.check(own.model, own.template, 1)
        if _form(gist) != _form(own):
            raise GistMismatchError(
                "this gist's activations do not have this model's shapes; compress the "
                "instruction with this model"
            )

    async def _sample(self) -> Gist:
        """A gist of this model; it does not stay in the store."""
        # what nobody else asks for, so that nobody's gist is removed
        id, gist = await self.engine.compress(f"Answer {secrets.token_hex(8)}.")
        with suppress(SaveError):
            await asyncio.to_thread(self.store.remove, id)
        return gist


def check_finite(gist: Gist) -> None:
    """Raise GistMismatchError where an activation is no number."""
    if not all(bool(torch.isfinite(tensor).all()) for tensor in gist.tensors.values()):
        raise GistMismatchError("this gist holds activations that are no numbers")


def service_of(request: Request) -> Service:
    """The server that a request came to."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


def _form(gist: Gist) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Names, types and shapes, but for the number of gist tokens."""
    return {
        name: (tensor.dtype, (*tensor.shape[1:-2], tensor.shape[-1]))
        for name, tensor in gist.tensors.items()
    }
