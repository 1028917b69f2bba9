"""`/v1/models`: the one model."""

from typing import Any

from fastapi import APIRouter, Request

from gistkit.serving.failures import ApiError
from gistkit.serving.replies import stamp
from gistkit.serving.service import Service, service_of

router = APIRouter()
_SINCE = stamp()


@router.get("/v1/models", summary="List the model")
async def list_models(request: Request) -> dict[str, Any]:
    """As OpenAI's; `gist_tokens` are the k that can be asked for."""
    return {"object": "list", "data": [_model(service_of(request))]}


@router.get("/v1/models/{id:path}", summary="Look at the model")
async def get_model(request: Request, id: str) -> dict[str, Any]:
    """As in the list."""
    service = service_of(request)
    if id != service.engine.name:
        raise ApiError(404, f"no model {id!r} here", code="model_not_found", param="model")
    return _model(service)


def _model(service: Service) -> dict[str, Any]:
    engine = service.engine
    return {
        "id": engine.name,
        "object": "model",
        "created": _SINCE,
        "owned_by": "gistkit",
        "gist_tokens": list(engine.trained),
        "max_length": engine.max_length,
    }
