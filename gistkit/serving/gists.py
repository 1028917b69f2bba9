"""`/v1/gists`: create, list, get, download, upload, pin, check and delete gists."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from gistkit.errors import GistFileError, SaveError, UnavailableError
from gistkit.fidelity import fidelity_of
from gistkit.gist import Gist
from gistkit.serving.api_errors import ApiError, Json
from gistkit.serving.responses import unless_gone
from gistkit.serving.schema import (
    ID,
    Check,
    GistChange,
    GistDeleted,
    GistInfo,
    GistList,
    NewGist,
    Ttl,
)
from gistkit.serving.service import Service, check_finite
from gistkit.store import Entry, GistStore

FILE_TYPE = "application/octet-stream"
FILE_SCHEMA = {FILE_TYPE: {"schema": {"type": "string", "format": "binary"}}}

router = APIRouter(prefix="/v1/gists")
Id = Annotated[str, Path(pattern=ID)]


@router.post(
    "", summary="Compress an instruction", status_code=201, responses={201: {"model": GistInfo}}
)
async def create(request: Request, body: NewGist) -> dict[str, Any]:
    """The gist is kept in the store; an existing one is not made again."""
    service: Service = request.app.state.service
    compressing = service.engine.compress(body.instruction, body.k)
    id, gist = await unless_gone(request, _limited(service, compressing))
    await asyncio.to_thread(_label, service.store, id, body.pinned, body.ttl)
    return await _info(service.store, id, gist)


@router.get("", summary="List gists", responses={200: {"model": GistList}})
async def list_gists(
    request: Request, limit: Annotated[int, Query(ge=1, le=1000)] = 1000
) -> dict[str, Any]:
    """The most recently used first. `fidelity` is the score alone; a single gist has its parts."""
    service: Service = request.app.state.service
    try:
        entries = await asyncio.to_thread(service.store.entries)
    except GistFileError as error:  # the whole store, not one gist
        raise UnavailableError(str(error)) from error
    data = [
        _to_json(entry, None if entry.fidelity is None else {"score": entry.fidelity})
        for entry in entries[:limit]
    ]
    return {"object": "list", "data": data, "has_more": len(entries) > limit}


@router.post(
    "/file",
    summary="Upload a gist file",
    status_code=201,
    responses={201: {"model": GistInfo}},
    openapi_extra={"requestBody": {"required": True, "content": FILE_SCHEMA}},
)
async def upload(
    request: Request,
    pinned: bool | None = None,
    ttl: Annotated[Ttl | None, Query()] = None,
) -> dict[str, Any]:
    """Its digest is checked, and that its activations have the form of this model's gists.

    It is found by its id alone: no file can prove of which instruction it is the gist.
    """
    service: Service = request.app.state.service
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FILE_TYPE:
        raise ApiError(415, f"send the file's bytes as {FILE_TYPE}", code="unsupported_media_type")
    data = await request.body()
    try:
        gist = await asyncio.to_thread(Gist.from_bytes, data, "this file")
    except GistFileError as error:
        raise ApiError(400, str(error), code="gist_damaged") from error
    await service.check_gist(gist)
    await asyncio.to_thread(check_finite, gist)
    id = await asyncio.to_thread(service.store.put, None, gist, pinned=pinned, ttl=ttl)
    return await _info(service.store, id, gist)


@router.get("/{id}", summary="Get a gist", responses={200: {"model": GistInfo}})
async def get(request: Request, id: Id) -> dict[str, Any]:
    """Its facts, and its fidelity with all parts."""
    service: Service = request.app.state.service
    return await _info(service.store, id, await service.get_gist(id))


@router.delete("/{id}", summary="Delete a gist", responses={200: {"model": GistDeleted}})
async def delete(request: Request, id: Id) -> dict[str, Any]:
    """Pinned or not."""
    service: Service = request.app.state.service
    if not await asyncio.to_thread(service.store.remove, id):
        raise _not_found(id)
    return {"id": id, "object": "gist", "deleted": True}


@router.patch("/{id}", summary="Pin or unpin a gist", responses={200: {"model": GistInfo}})
async def change(request: Request, id: Id, body: GistChange) -> dict[str, Any]:
    """A pinned gist is never evicted for room."""
    service: Service = request.app.state.service
    await service.get_gist(id)
    await asyncio.to_thread(service.store.pin, id, body.pinned)
    return await _info(service.store, id, await service.get_gist(id))


@router.get(
    "/{id}/file",
    summary="Download a gist",
    response_class=Response,
    responses={200: {"content": FILE_SCHEMA}},
)
async def download(request: Request, id: Id) -> Response:
    """A file for `gistkit compress --gist`, or for another server of the same model."""
    service: Service = request.app.state.service
    gist = await service.get_gist(id)
    name = f'attachment; filename="{id[:12]}.safetensors"'
    data = await asyncio.to_thread(gist.to_bytes)
    return Response(data, media_type=FILE_TYPE, headers={"Content-Disposition": name})


@router.post("/{id}/check", summary="Is this gist safe?")
async def check(request: Request, id: Id, body: Check) -> Json:
    """Measure its fidelity to the instruction and keep it with the gist. See docs/fidelity.md."""
    service: Service = request.app.state.service
    await service.load_gist(id)
    measuring = service.engine.measure(id, body.instruction, body.probes or ())
    return Json(dict(await unless_gone(request, _limited(service, measuring))))


async def _limited(service: Service, work: Any) -> Any:
    async with asyncio.timeout(service.settings.timeout):
        return await work


def _label(store: GistStore, id: str, pinned: bool | None, ttl: float | None) -> None:
    """Pin a gist that was just made, and set when it expires."""
    try:
        if pinned is not None or store.find(id) is None:  # saves what is in memory alone
            store.pin(id, bool(pinned))
        if ttl is not None:
            store.expire(id, ttl)
    except GistFileError as error:  # it is gone again
        raise SaveError(
            "the gist could not be kept; free space in the store, or unpin gists"
        ) from error


async def _info(store: GistStore, id: str, gist: Gist) -> dict[str, Any]:
    entry = await asyncio.to_thread(store.find, id)
    if entry is None:
        raise _not_found(id)
    try:
        fidelity = fidelity_of(gist)
    except GistFileError:
        fidelity = None
    return _to_json(entry, None if fidelity is None else fidelity.to_json())


def _to_json(entry: Entry, fidelity: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "id": entry.id,
        "object": "gist",
        "k": entry.num_tokens,
        "bytes": entry.num_bytes,
        "instruction_tokens": entry.instruction_length,
        "instruction_sha256": entry.instruction_sha256,
        "model": entry.model,
        "uploaded": not entry.keyed,
        "created": int(entry.created),
        "last_used": int(entry.last_used),
        "expires": None if entry.expires is None else int(entry.expires),
        "pinned": entry.pinned,
        "fidelity": fidelity,
    }


def _not_found(id: str) -> ApiError:
    return ApiError(404, f"no gist {id}", code="gist_not_found")
