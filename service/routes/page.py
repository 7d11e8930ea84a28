"""The page itself: its HTML, scripts and styles, which ask the other addresses for the rest."""

from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from service.answers.openapi import described
from service.errors import ServiceError
from service.page_files import page_files

FILES = page_files()
FOREVER = "public, max-age=31536000, immutable"  # of an address that says what is there

KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def routes() -> list[Route]:
    return [Route("/", index), Route("/static/{folder}/{file}", static)]


@described("html", errors=())
def index(request: Request) -> Response:
    """The page."""
    return HTMLResponse(FILES.index)


@described("file", errors=("not-found",))
def static(request: Request) -> Response:
    """A script, style or picture of the page; the folder is the hash of all of them."""
    name = request.path_params["file"]
    if request.path_params["folder"] != FILES.folder or name not in FILES.static:
        raise ServiceError("not-found", "no such file of the page", "reload the page")
    headers = {"Cache-Control": FOREVER}
    return Response(FILES.static[name], 200, headers, KINDS[PurePath(name).suffix])
