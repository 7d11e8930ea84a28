"""The application: which address is answered by which function, behind the guard."""

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from featurestore.errors import BiomassError
from service import log
from service.answers import openapi
from service.answers.computations import Computations
from service.connection.guard import Guard
from service.connection.metrics import Counting, Metrics
from service.errors import ServiceError, translated
from service.library import HIDDEN, Library
from service.relay import Relay
from service.routes import (
    health,
    images,
    out_of_fold,
    page,
    photographs,
    predictions,
    rows,
    stores,
    sweeps,
    zarr_objects,
)

TEXTS = ("json", "table", "html", "file")  # pictures are compressed as they are
LEVEL = 6  # of 9, which takes twice as long for a hundredth less


def create_app(
    library: Library,
    hosts: Sequence[str],
    token: str | None = None,
    relay: Relay | None = None,
) -> Starlette:
    """The service as an ASGI application.

    library : what it serves. hosts : names and addresses that a request's Host may have, whatever
        its port. token : what a request must bring, None lets everybody in. relay : answers what
        must be computed; None computes it here, beside all else.
    """
    metrics = Metrics()
    guard = Middleware(Guard, token=token, hosts=hosts, entrance=page.FILES.entrance)
    # counting is outermost, so that what the guard refuses is counted too
    middleware = [Middleware(Counting, metrics), guard]
    # what is computed, decoded or made into tables; all else is read and sent as it is
    computed = [
        *stores.computed_routes(),
        *photographs.routes(),
        *images.routes(),
        *sweeps.routes(),
        *out_of_fold.routes(),
        *predictions.routes(),
    ]
    if relay is not None:
        metrics.registry.register(relay)
        computed = [relay.through(route) for route in computed]  # which compresses
    else:
        computed = [_compressed(route) for route in computed]
    app = Starlette(
        routes=[*_read(), *computed],
        middleware=middleware,
        exception_handlers={
            ServiceError: _answer,
            BiomassError: _translate,
            HTTPException: _refuse,
        },
    )
    # a redirection would name the host as the server knows it, which a proxy may have changed
    app.router.redirect_slashes = False
    app.state.library = library
    app.state.metrics = metrics
    app.state.computations = Computations()
    return app


def _read() -> list[BaseRoute]:
    """What is read and sent as it is; texts compressed, bytes of a store never."""
    texts = [
        Route("/openapi.json", openapi.document),
        *stores.read_routes(),
        *page.routes(),
    ]
    return [
        Route("/healthz", health.healthz),
        Route("/metrics", health.metrics),
        *(_compressed(route) for route in texts),
        Route("/v1/stores/{s}/rows/{image}/{view}", rows.row),
        Route("/v1/stores/{s}/arrays/{name:path}", rows.array),
        Route("/v1/stores/{s}/zarr/{key:path}", zarr_objects.zarr_object),
        Route("/v1/stores/{s}/file", rows.file),
    ]


def _compressed(route: Route) -> Route:
    """The same, compressed for who accepts it if it answers with text."""
    if route.endpoint.described.answer in TEXTS:
        route.app = GZipMiddleware(route.app, compresslevel=LEVEL)
    return route


def _answer(request: Request, err: ServiceError) -> Response:
    # the answer hides paths and causes; who runs the server needs them
    if err.__cause__ and err.status == 500 or err.kind == "store-gone":
        log.say(f"{request.scope['path']}: {err.__cause__}")
    return err.answer()


def _translate(request: Request, err: BiomassError) -> Response:
    error = translated(err, request.app.state.library.without_paths(str(err)))
    if error.status == 500 or error.message == HIDDEN:
        log.say(f"{request.scope['path']}: {err}")
    return error.answer()


def _refuse(request: Request, err: HTTPException) -> Response:
    """What Starlette itself refuses."""
    kind = {404: "not-found", 405: "method-not-allowed"}.get(err.status_code, "bad-request")
    return ServiceError(
        kind,
        "nothing has this address",
        "/openapi.json lists the addresses",
        dict(err.headers or {}),
    ).answer()
