"""Answers that a browser keeps: their address says of which state of a store or sweep they are.

Where a state is no longer the present one its answers are never asked for again, so that none that
is kept needs to be asked for anew. Only what is made of that store or sweep alone may be kept.
"""

import hashlib
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

OF = (
    "The `state` that /v1/stores gives the store or sweep: of its present state the answer may be "
    "kept.",
    {"type": "string"},
)
KEPT = "private, max-age=86400, immutable"  # what a browser keeps outlives a token: not for long


def kept(request: Request, state: str | None, response: Response) -> Response:
    """The response, which may be kept if `?of=` names the state that it was made of."""
    if state and request.query_params.get("of") == state:
        response.headers["Cache-Control"] = KEPT
    return response


def tagged(request: Request, response: Response) -> Response:
    """The response with the ETag of its body; 304 where If-None-Match names that."""
    return tagged_by(request, bytes(response.body), lambda: response)


def tagged_by(request: Request, made_of: bytes, make: Callable[[], Response]) -> Response:
    """A response with the ETag of what it is made of; where If-None-Match names that, nothing is
    made, and the answer is 304."""
    # weak: it may be compressed on its way
    etag = f'W/"{hashlib.sha256(made_of).hexdigest()[:16]}"'
    if matches(request.headers.get("if-none-match"), etag):
        return Response(None, 304, {"ETag": etag})
    response = make()
    response.headers["ETag"] = etag
    return response


def matches(header: str | None, etag: str) -> bool:
    """Whether If-None-Match names the ETag, or any."""
    # by weak comparison (RFC 9110, 13.1.2)
    listed = (header or "").split(",")
    given = [each.strip().removeprefix("W/") for each in listed]
    return given == ["*"] or etag.removeprefix("W/") in given
