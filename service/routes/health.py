"""What operators and monitoring ask: whether the server answers, and its counts."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service.answers.openapi import described


@described("json", ())
async def healthz(request: Request) -> Response:  # async: it waits for no thread
    """Whether the server answers; it needs no token and looks at no store."""
    return JSONResponse({"status": "ok"})


@described("text", ())
def metrics(request: Request) -> Response:
    """Counts in Prometheus' text format."""
    text, media_type = request.app.state.metrics.text()
    return Response(text, media_type=media_type)
