"""The server's application: routes, and the layers around them.

    app = make_app(TransformersEngine(model, store), store)     # an ASGI application
    Gate ── Door ── routes: chat, completions, models, gists, health, metrics, page

There is no CORS: pages of other sites cannot read answers, and every route that changes something
takes a content type that their browsers must ask for first.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from gistkit.serving import chat, completions, gists, health, models, playground
from gistkit.serving.answers import FAILURES
from gistkit.serving.door import Door
from gistkit.serving.engine import Engine
from gistkit.serving.failures import http_failure, invalid
from gistkit.serving.gate import Gate
from gistkit.serving.keys import Keys
from gistkit.serving.limits import Settings
from gistkit.serving.service import Service
from gistkit.store import GistStore


def make_app(
    engine: Engine,
    store: GistStore,
    *,
    settings: Settings | None = None,
    keys: Keys | None = None,
    local: bool = True,
) -> FastAPI:
    """An application that starts the engine and stops it; `app.state.service` is its `Service`.

    Args:
        store: the engine's; the caller closes it.
        keys: None: nobody needs one.
        local: without keys, answer to this machine's names only.
    """
    chosen = Settings() if settings is None else settings
    service = Service(engine, store, chosen)

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
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        # what leaves this process is decided here, not by the environment; and asking takes time
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        responses=FAILURES,
        dependencies=[] if keys is None else [Depends(HTTPBearer(auto_error=False))],
    )
    app.state.service = service
    for routes in (chat, completions, models, gists, health, playground):
        app.include_router(routes.router)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_failure)
    app.add_middleware(Door, keys=keys, max_body=chosen.max_body)
    app.add_middleware(
        Gate, metrics=service.metrics, drain=service.drain, local=local and keys is None
    )
    return app
