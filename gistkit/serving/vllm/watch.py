"""Looking after servers: who is what it should be, who has gone, who is back."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress

from gistkit.errors import PromptError
from gistkit.serving.vllm.client import Endpoint, Facts
from gistkit.serving.vllm.wire import EndpointError

log = logging.getLogger(__name__)

EVERY = 2.0  # seconds between two looks at a server that is up
SOON, LATE = 0.5, 4.0  # seconds between two at one that is not: longer each time
GREETING = 60.0  # seconds that a server may take to show what it is
SILENT = 3  # looks without any word, after which it is gone

Greet = Callable[[Endpoint], Awaitable[Facts]]
"""Has a server show what it is (raises EndpointError)."""


class Watch:
    """Keeps the states of servers.

    Args:
        greet: see above.
        changed: called when one is back or gone.
    """

    def __init__(self, greet: Greet, changed: Callable[[], Awaitable[None]]) -> None:
        self._greet, self._changed = greet, changed

    async def run(self, endpoint: Endpoint) -> None:
        """Look after one server, for ever."""
        silent, pause = 0, SOON
        while True:
            endpoint.woken.clear()
            try:
                if endpoint.up:
                    await endpoint.alive()
                else:
                    await self.greet(endpoint)
                    log.info("a server is up", extra={"facts": {"url": endpoint.url}})
                silent, pause = 0, SOON
            except TimeoutError:
                silent += 1
                if silent >= SILENT or not endpoint.up:
                    await self._lose(endpoint, "it does not answer")
            except (EndpointError, PromptError) as error:
                await self._lose(endpoint, str(error))
            except Exception:
                log.exception("looking after a server failed")
                await self._lose(endpoint, "looking after it failed; see the log")
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY if endpoint.up else pause):
                    await endpoint.woken.wait()
            pause = SOON if endpoint.woken.is_set() else min(2 * pause, LATE)

    async def greet(self, endpoint: Endpoint) -> Facts:
        """Have a server show what it is; then it is up.

        Raises:
            EndpointError: it is not there, or another one.
            TimeoutError: it takes too long.
        """
        async with asyncio.timeout(GREETING):
            facts = await self._greet(endpoint)
        endpoint.state, endpoint.why = "up", ""
        await self._changed()
        return facts

    async def _lose(self, endpoint: Endpoint, why: str) -> None:
        if endpoint.state != "gone" or endpoint.why != why:
            log.warning("a server is gone", extra={"facts": {"url": endpoint.url, "why": why}})
        endpoint.state, endpoint.why = "gone", why
        endpoint.held.clear()
        for reading in list(endpoint.readings):
            reading.cancel()
        await self._changed()
