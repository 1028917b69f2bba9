"""The server's application: its middleware and all routes.

    app = make_app(TransformersEngine(model, store), store)     # an ASGI application
    Middleware ── completions, gists, and here: models, health, metrics, the playground

There is no CORS: pages of other sites cannot read answers, and every route that changes something
takes a content type that their browsers must ask permission for.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

from gistkit.errors import GistFileError, UnavailableError
from gistkit.serving import completions, gists
from gistkit.serving.api_errors import ApiError, http_error, validation_error
from gistkit.serving.engine import Engine
from gistkit.serving.keys import Keys
from gistkit.serving.middleware import Middleware
from gistkit.serving.observability import log
from gistkit.serving.schema import ERRORS
from gistkit.serving.service import Service
from gistkit.serving.settings import Settings
from gistkit.store import GistStore

STARTED = int(time.time())

PAGE = Path(__file__).parent / "page"
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""Nothing from other sites, and in no other site's frame."""

PAGE_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}

router = APIRouter()


def make_app(
    engine: Engine,
    store: GistStore,
    *,
    settings: Settings | None = None,
    keys: Keys | None = None,
    local: bool = True,
) -> FastAPI:
    """An application that starts and stops the engine; `app.state.service` is its `Service`.

    Args:
        store: the engine's; the caller closes it.
        keys: None: no key is needed.
        local: without keys, answer only requests for this machine's names.
    """
    settings = settings or Settings()
    service = Service(engine, store, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        service.ready = True
        try:
            yield
        finally:
            service.ready = False
            await engine.stop()

    app = FastAPI(
        title="gistkit",
        version=version("gistkit"),
        summary="OpenAI's API with instructions compressed into gist tokens",
        lifespan=lifespan,
        docs_url=None,  # they load scripts from other sites
        redoc_url=None,
        redirect_slashes=False,
        # what leaves this process is not for the environment to decide; and checking takes time
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        responses=ERRORS,
        dependencies=[] if keys is None else [Depends(HTTPBearer(auto_error=False))],
    )
    app.state.service = service
    for routes in (completions.router, gists.router, router):
        app.include_router(routes)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_middleware(Middleware, service=service, keys=keys, local=local and keys is None)
    return app


@router.get("/v1/models", summary="List the model")
async def list_models(request: Request) -> dict[str, Any]:
    """OpenAI's; `gist_tokens` are the supported k."""
    return {"object": "list", "data": [_model(request.app.state.service.engine)]}


@router.get("/v1/models/{id:path}", summary="Get the model")
async def get_model(request: Request, id: str) -> dict[str, Any]:
    engine = request.app.state.service.engine
    if id != engine.name:
        raise ApiError(404, f"no model {id!r} here", code="model_not_found", param="model")
    return _model(engine)


def _model(engine: Engine) -> dict[str, Any]:
    return {
        "id": engine.name,
        "object": "model",
        "created": STARTED,
        "owned_by": "gistkit",
        "gist_tokens": list(engine.trained),
        "max_length": engine.max_length,
    }


@router.get("/health/live", summary="Is the process running?")
async def live() -> dict[str, str]:
    """Always, if there is a response at all."""
    return {"status": "live"}


@router.get("/health/ready", summary="Does the server accept requests?")
async def ready(request: Request) -> dict[str, str]:
    """503 before the engine has started, after it has failed for good, and from SIGTERM on."""
    service: Service = request.app.state.service
    if service.draining or not service.ready:
        raise UnavailableError("the server is stopping, or has not started yet")
    if not service.engine.healthy:
        raise UnavailableError("the engine has stopped, or no vLLM server is up; see the log")
    return {"status": "ready"}


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """docs/serving.md explains them. A store that cannot be read has none."""
    service: Service = request.app.state.service
    engine = service.engine.stats()
    store: Mapping[str, int] = {}
    try:
        store = await asyncio.to_thread(service.store.stats)
    except GistFileError:
        log.exception("the store's metrics cannot be read")
    return Response(service.metrics.page(engine, store), media_type=CONTENT_TYPE_LATEST)


@router.get("/", include_in_schema=False)
async def index() -> Response:
    return _page_file("index.html")


@router.get("/page/{name}", include_in_schema=False)
async def page_file(
    name: Annotated[str, PathParameter(pattern=r"^[a-z]{1,32}\.(css|js)$")],
) -> Response:
    return _page_file(name)


def _page_file(name: str) -> Response:
    path = PAGE / name
    if not path.is_file():
        raise ApiError(404, "this server has no page", code="no_page")
    return FileResponse(
        path,
        media_type=PAGE_TYPES[path.suffix],
        headers={"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache"},
    )
