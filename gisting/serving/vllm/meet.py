"""Which weights do servers run? Asked once, before anything is known of them."""

import asyncio
from collections.abc import Sequence

import httpx2

from gisting.errors import OptionError, UnavailableError
from gisting.serving.vllm.endpoint import Endpoint, client_of
from gisting.serving.vllm.wire import BrokenError, EndpointError

PATIENCE = 60.0  # seconds for the first server to answer
AGAIN = 0.5  # seconds


async def meet(urls: Sequence[str], key: str | None, *, patience: float = PATIENCE) -> str:
    """The fingerprint of the weights that the servers run.

    Servers that do not answer are left out, as long as one does.

    Raises:
        UnavailableError: none answers in time, or none says what it runs.
        OptionError: they run different weights.
    """
    client = client_of(key)
    told: list[str | Exception] = []
    loop = asyncio.get_running_loop()
    end = loop.time() + patience
    try:
        while True:
            told = [await _told(url, client) for url in urls]
            found = {one for one in told if isinstance(one, str)}
            waiting = any(isinstance(one, BrokenError | TimeoutError) for one in told)
            if found or not waiting or loop.time() > end:
                break
            await asyncio.sleep(AGAIN)
    finally:
        await client.aclose()
    if not found:
        pairs = zip(urls, told, strict=True)
        reasons = "; ".join(f"{url}: {str(why) or 'no answer in time'}" for url, why in pairs)
        raise UnavailableError(f"no vLLM server can be used: {reasons}")
    if len(found) > 1:
        raise OptionError("the endpoints run different weights; one gateway serves one model")
    return found.pop()


async def _told(url: str, client: httpx2.AsyncClient) -> str | Exception:
    """The fingerprint, or an exception that says why there is none."""
    try:
        weights = (await Endpoint(url, client).facts()).weights
    except (EndpointError, TimeoutError) as error:
        return error
    return weights or EndpointError(
        "it does not say which weights it runs; start it with the command that `gisting serve "
        "--engine vllm --print-command` prints"
    )
