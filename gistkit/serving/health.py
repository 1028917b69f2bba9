"""`/health/live`, `/health/ready`, `/metrics`: for whoever watches the server."""

import asyncio
from collections.abc import Mapping

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from gistkit.errors import GistFileError, UnavailableError
from gistkit.serving.logs import log
from gistkit.serving.service import service_of

router = APIRouter()


@router.get("/health/live", summary="Is the process there?")
async def live() -> dict[str, str]:
    """Always, where there is an answer at all."""
    return {"status": "live"}


@router.get("/health/ready", summary="Are requests welcome?")
async def ready(request: Request) -> dict[str, str]:
    """503 before the engine has started, when it has failed for good, and from SIGTERM on."""
    service = service_of(request)
    if service.drain.begun or not service.ready:
        raise UnavailableError("the server is stopping, or has not started yet")
    if not service.engine.healthy:
        raise UnavailableError("the engine has ended, or its vLLM servers are gone; see the log")
    return {"status": "ready"}


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """See docs/serving.md for what they mean. A store that cannot be read has no numbers."""
    service = service_of(request)
    engine = service.engine.stats()
    store: Mapping[str, int] = {}
    try:
        store = await asyncio.to_thread(service.store.stats)
    except GistFileError:
        log.exception("the store has no numbers")
    return Response(service.metrics.page(engine, store), media_type=CONTENT_TYPE_LATEST)
