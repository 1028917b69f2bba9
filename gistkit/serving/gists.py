"""`/v1/gists`: make, list, look at, take away, bring, pin, check and delete gists."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from gistkit.errors import GistFileError, SaveError, UnavailableError
from gistkit.fidelity import fidelity_of
from gistkit.gist import Gist
from gistkit.serving.answers import GistFacts, GistGone, GistList
from gistkit.serving.failures import ApiError, Json
from gistkit.serving.limits import MAX_LISTED
from gistkit.serving.replies import unless_gone
from gistkit.serving.schema import ID, Check, GistChange, NewGist, Ttl
from gistkit.serving.service import Service, check_finite, service_of
from gistkit.store import Entry

FILE_TYPE = "application/octet-stream"

router = APIRouter(prefix="/v1/gists")
Id = Annotated[str, Path(pattern=ID)]


@router.post(
    "", summary="Compress an instruction", status_code=201, responses={201: {"model": GistFacts}}
)
async def create(request: Request, body: NewGist) -> dict[str, Any]:
    """The gist is kept in the store; one that is there already is not made again."""
    service = service_of(request)
    id, gist = await unless_gone(
        request, _limited(service, service.engine.compress(body.instruction, body.k))
    )
    await asyncio.to_thread(_label, service, id, body.pinned, body.ttl)
    return await _one(service, id, gist)


@router.get("", summary="List gists", responses={200: {"model": GistList}})
async def list_gists(
    request: Request, limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = MAX_LISTED
) -> dict[str, Any]:
    """The last used first. `fidelity` is the score alone; its parts are with the single gist."""
    service = service_of(request)
    try:
        entries = await asyncio.to_thread(service.store.entries)
    except GistFileError as error:  # not one gist: all of them
        raise UnavailableError(str(error)) from error
    found = [_gist(entry, _score(entry)) for entry in entries[:limit]]
    return {"object": "list", "data": found, "has_more": len(entries) > limit}


@router.post(
    "/file",
    summary="Bring a gist file",
    status_code=201,
    responses={201: {"model": GistFacts}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {FILE_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def upload(
    request: Request,
    pinned: bool | None = None,
    ttl: Annotated[Ttl | None, Query()] = None,
) -> dict[str, Any]:
    """Every bit of it is checked, and that its activations can be this model's.

    It is found by its id alone: no file can prove of which instruction it is the gist.
    """
    service = service_of(request)
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != FILE_TYPE:
        raise ApiError(415, f"send the file's bytes as {FILE_TYPE}", code="unsupported_media_type")
    data = await request.body()
    try:
        gist = await asyncio.to_thread(Gist.from_bytes, data, "this file")
    except GistFileError as error:
        raise ApiError(400, str(error), code="gist_damaged") from error
    await service.check(gist)
    await asyncio.to_thread(check_finite, gist)
    id = await asyncio.to_thread(service.store.put, None, gist, pinned=pinned, ttl=ttl)
    return await _one(service, id, gist)


@router.get("/{id}", summary="Look at a gist", responses={200: {"model": GistFacts}})
async def get(request: Request, id: Id) -> dict[str, Any]:
    """What is known of it, its fidelity with all parts."""
    service = service_of(request)
    return await _one(service, id, await service.get(id))


@router.delete("/{id}", summary="Delete a gist", responses={200: {"model": GistGone}})
async def delete(request: Request, id: Id) -> dict[str, Any]:
    """Pinned or not."""
    if not await asyncio.to_thread(service_of(request).store.remove, id):
        raise _nothing(id)
    return {"id": id, "object": "gist", "deleted": True}


@router.patch("/{id}", summary="Pin a gist, or no longer", responses={200: {"model": GistFacts}})
async def change(request: Request, id: Id, body: GistChange) -> dict[str, Any]:
    """A pinned gist is never evicted for room."""
    service = service_of(request)
    await service.get(id)
    await asyncio.to_thread(service.store.pin, id, body.pinned)
    return await _one(service, id, await service.get(id))


@router.get(
    "/{id}/file",
    summary="Take a gist away",
    response_class=Response,
    responses={200: {"content": {FILE_TYPE: {"schema": {"type": "string", "format": "binary"}}}}},
)
async def download(request: Request, id: Id) -> Response:
    """As a file for `gistkit compress --gist`, or another server of the same model."""
    gist = await service_of(request).get(id)
    name = f'attachment; filename="{id[:12]}.safetensors"'
    data = await asyncio.to_thread(gist.to_bytes)
    return Response(data, media_type=FILE_TYPE, headers={"Content-Disposition": name})


@router.post("/{id}/check", summary="Is this gist safe?")
async def check(request: Request, id: Id, body: Check) -> Json:
    """Its fidelity to the instruction, with parts; kept with the gist. See docs/fidelity.md."""
    service = service_of(request)
    await service.load(id)
    found = await unless_gone(
        request,
        _limited(service, service.engine.measure(id, body.instruction, body.probes or ())),
    )
    return Json(dict(found))


async def _limited(service: Service, work: Any) -> Any:
    async with asyncio.timeout(service.settings.timeout):
        return await work


def _label(service: Service, id: str, pinned: bool | None, ttl: float | None) -> None:
    """Pin and date a gist that was just made."""
    store = service.store
    try:
        if pinned is not None or store.find(id) is None:  # what is in memory alone is kept now
            store.pin(id, bool(pinned))
        if ttl is not None:
            store.expire(id, ttl)
    except GistFileError as error:  # gone again
        raise SaveError("the gist could not be kept; free space in the store, or pins") from error


async def _one(service: Service, id: str, gist: Gist) -> dict[str, Any]:
    entry = await asyncio.to_thread(service.store.find, id)
    if entry is None:
        raise _nothing(id)
    try:
        found = fidelity_of(gist)
    except GistFileError:
        found = None
    return _gist(entry, None if found is None else found.to_json())


def _gist(entry: Entry, fidelity: dict[str, Any] | None) -> dict[str, Any]:
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


def _score(entry: Entry) -> dict[str, Any] | None:
    return None if entry.fidelity is None else {"score": entry.fidelity}


def _nothing(id: str) -> ApiError:
    return ApiError(404, f"no gist {id}", code="gist_not_found")
