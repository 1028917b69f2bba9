"""`/` and `/page/...`: the files of the playground, where they are installed."""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter
from fastapi import Path as InPath
from starlette.responses import FileResponse, Response

from gistkit.serving.failures import ApiError

FOLDER = Path(__file__).parent / "page"
POLICY = (
    "default-src 'self'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""Nothing from elsewhere, and in nobody's frame."""

TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}

router = APIRouter(include_in_schema=False)


@router.get("/")
async def index() -> Response:
    """The page."""
    return _file("index.html")


@router.get("/page/{name}")
async def part(name: Annotated[str, InPath(pattern=r"^[a-z]{1,32}\.(css|js)$")]) -> Response:
    """What belongs to it."""
    return _file(name)


def _file(name: str) -> Response:
    path = FOLDER / name
    if not path.is_file():
        raise ApiError(404, "this server has no page", code="no_page")
    return FileResponse(
        path,
        media_type=TYPES[path.suffix],
        headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"},
    )
