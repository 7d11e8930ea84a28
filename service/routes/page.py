"""The page itself: its HTML, scripts and styles, which ask the other addresses for the rest."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from service.answers.openapi import described

PAGE = Path(__file__).parent.parent / "page"
ENTRANCE = (PAGE / "token.html").read_bytes()


def routes() -> list[BaseRoute]:
    return [Route("/", index), Mount("/static", StaticFiles(directory=PAGE))]


@described("html", errors=())
def index(request: Request) -> Response:
    """The page."""
    return FileResponse(PAGE / "index.html")
