"""Which model do servers run? Asked once, before anything is known of them."""

import asyncio
import logging
from collections.abc import Sequence

import httpx2

from gistkit.errors import OptionError, UnavailableError
from gistkit.serving.vllm.client import Endpoint, client_of
from gistkit.serving.vllm.identity import NAMELESS, Identity
from gistkit.serving.vllm.wire import BrokenError, EndpointError

log = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds for the first server to answer
AGAIN = 0.5  # seconds


async def meet(urls: Sequence[str], key: str | None, *, patience: float = PATIENCE) -> Identity:
    """The model that the servers run.

    Servers that do not answer are left out, as long as one does.

    Raises:
        UnavailableError: none answers in time, or none says what it runs.
        OptionError: they run different models.
    """
    client = client_of(key)
    told: list[Identity | Exception] = []
    said = False
    loop = asyncio.get_running_loop()
    end = loop.time() + patience
    try:
        while True:
            told = [await _told(url, client) for url in urls]
            found = {one for one in told if isinstance(one, Identity)}
            waiting = any(isinstance(one, BrokenError | TimeoutError) for one in told)
            if found or not waiting or loop.time() > end:
                break
            if not said:
                log.info(
                    "waiting for a vLLM server", extra={"facts": {"why": _reasons(urls, told)}}
                )
                said = True
            await asyncio.sleep(AGAIN)
    finally:
        await client.aclose()
    if not found:
        raise UnavailableError(f"no vLLM server can be used: {_reasons(urls, told)}")
    if len(found) > 1:
        raise OptionError("the endpoints run different models; one gateway serves one model")
    return found.pop()


def _reasons(urls: Sequence[str], told: Sequence[object]) -> str:
    pairs = zip(urls, told, strict=True)
    return "; ".join(f"{url}: {str(why) or 'no answer in time'}" for url, why in pairs)


async def _told(url: str, client: httpx2.AsyncClient) -> Identity | Exception:
    """What it runs, or an exception that says why there is none."""
    try:
        identity = (await Endpoint(url, client).facts()).identity
    except (EndpointError, TimeoutError) as error:
        return error
    return identity or EndpointError(NAMELESS)
