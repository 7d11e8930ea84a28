"""Addresses of one image: card, neighbours, predictions, pictures, and numbers of its patches."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import anyio
import pandas as pd
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from featurestore.disk.json_values import json_value
from featurestore.explore.neighbours import Directions, directions
from featurestore.explore.neighbours import nearest as nearest_images
from service.answers import computations
from service.answers.kept import OF, kept
from service.answers.openapi import VIEW, described
from service.answers.parameters import (
    library_of,
    name_of,
    number_of,
    opened_of,
    sealed_image_of,
    view_of,
)
from service.answers.tables import table_response
from service.errors import ServiceError
from service.explore import out_of_fold, overview, patch_grids, photographs, pictures
from service.json_text import JsonText
from service.routes import filters
from service.served import Opened

# requests about one image that are computed together, at some 100 MB each; others wait their turn
AT_ONCE = 4
# of what may be kept: the directions of one view; of more, each request goes through all tokens
DIRECTIONS_SHARE = 2
PATCH = re.compile(r"(\d{1,6}),(\d{1,6})", re.ASCII)
CELL = (
    "Row and column on the photograph's grid: 3,14.",
    {"type": "string", "pattern": r"^\d{1,6},\d{1,6}$"},
    True,
)
NEAREST = (
    "How many of the nearest photographs.",
    {"type": "integer", "minimum": 0, "maximum": patch_grids.MOST_SIMILAR},
)
ERRORS = ("not-found", "not-sealed", "store-damaged", "store-gone")
PREDICTION = ["sweep", "run", "target", "true", "predicted"]

T = TypeVar("T")


def routes() -> list[Route]:
    address = "/v1/stores/{s}/images/{image}"
    return [
        Route(address, card),
        Route(f"{address}/nearest.{{format}}", nearest),
        Route(f"{address}/predictions.{{format}}", predictions),
        Route(f"{address}/views.{{format}}", views),
        Route(f"{address}/thumb.jpg", thumb),
        Route(f"{address}/photograph.jpg", photograph),
        Route(f"{address}/pca.png", pca),
        Route(f"{address}/norms.json", norms),
        Route(f"{address}/similar.json", similar),
    ]


@described("json", errors=ERRORS, view=VIEW, k=NEAREST, **filters.QUERY)
async def card(request: Request) -> Response:
    """Labels, norms, nearest photographs, and what the served sweeps predict for it out of fold.

    Of a list that a filter names it tells who comes before and after.
    """
    opened = await run_in_threadpool(opened_of, request)
    view = view_of(request, opened)
    k = number_of(request, "k", 12, patch_grids.MOST_SIMILAR, least=1)
    listed = None
    if filters.is_filtered(request):
        listed = await filters.photographs_of(request, opened)
    all_directions = await _directions(request, opened, view)

    # all in the thread: predictions are read, and the text is made, there too
    def made(image: int) -> Response:
        found = overview.image_card(opened.store, image, k, view, all_directions)
        if listed is not None:
            errors = filters.errors_of(request, opened)
            found |= photographs.beside(listed, found["image_id"], errors.run, errors.target)
        predicted = _predictions(request, found["image_id"])
        return JsonText(json_value(found | {"predictions": predicted}))

    return await _of_image(request, opened, made)


@described("table", errors=ERRORS, of=OF, view=VIEW, k=NEAREST)
async def nearest(request: Request) -> Response:
    """The nearest photographs by class token in a view, with their targets; most similar first."""
    opened = await run_in_threadpool(opened_of, request)
    view = view_of(request, opened)
    k = number_of(request, "k", 12, patch_grids.MOST_SIMILAR, least=1)
    all_directions = await _directions(request, opened, view)

    def found(image: int) -> pd.DataFrame:
        near = nearest_images(opened.store, image, k, view, all_directions)
        return near.drop(columns="path")

    frame = await _of_image(request, opened, found)
    return table_response(request, frame, name_of(request, "format"), opened.state)


@described("table", errors=ERRORS)
async def predictions(request: Request) -> Response:
    """Out-of-fold predictions of served sweeps, a row a run and target, averaged over repeats."""
    opened = await run_in_threadpool(opened_of, request)

    def found(image: int) -> pd.DataFrame:
        rows = _predictions(request, opened.store.image_ids[image])
        return pd.DataFrame(rows, columns=PREDICTION)

    frame = await _of_image(request, opened, found)
    # no state: it is made of sweeps, not of the store alone, so no browser may keep it
    return table_response(request, frame, name_of(request, "format"))


@described("table", errors=ERRORS, of=OF)
async def views(request: Request) -> Response:
    """Its views: mean norms of class and patch tokens, and counts of non-finite values."""
    opened = await run_in_threadpool(opened_of, request)
    found = await _of_image(request, opened, partial(overview.view_norms, opened.store))
    frame = pd.DataFrame(found)
    return table_response(request, frame, name_of(request, "format"), opened.state)


@described("jpeg", errors=ERRORS, of=OF)
async def thumb(request: Request) -> Response:
    """The stored thumbnail."""
    opened = await run_in_threadpool(opened_of, request)
    body = await _of_image(request, opened, partial(pictures.thumb_jpeg, opened.store))
    return kept(request, opened.state, Response(body, media_type="image/jpeg"))


@described("jpeg", errors=ERRORS)
async def photograph(request: Request) -> Response:
    """The photograph where the server has it, else the thumbnail.

    The header X-Photograph says which, and whether it changed.
    """
    opened = await run_in_threadpool(opened_of, request)
    library = library_of(request)
    given = {"data": library.data, "max_pixels": library.max_pixels}
    make = partial(pictures.photograph_jpeg, opened.store, **given)
    body, state = await _of_image(request, opened, make)
    return Response(body, headers={"X-Photograph": state}, media_type="image/jpeg")


@described("png", errors=ERRORS, of=OF, view=VIEW)
async def pca(request: Request) -> Response:
    """The patch tokens' principal components as colours, a patch a pixel, upright."""
    opened = await run_in_threadpool(opened_of, request)
    make = partial(pictures.pca_png, opened.store, view=view_of(request, opened))
    body = await _of_image(request, opened, make)
    return kept(request, opened.state, Response(body, media_type="image/png"))


@described("json", errors=ERRORS, of=OF, view=VIEW)
async def norms(request: Request) -> Response:
    """Norm of each patch token on the photograph's grid."""
    opened = await run_in_threadpool(opened_of, request)
    view = view_of(request, opened)

    # the text, too, is made in the thread: that of a large grid takes long
    def made(image: int) -> Response:
        found = JsonText(patch_grids.norms(opened.store, image, view))
        return kept(request, opened.state, found)

    return await _of_image(request, opened, made)


@described("json", errors=ERRORS, of=OF, view=VIEW, k=NEAREST, patch=CELL)
async def similar(request: Request) -> Response:
    """Cosine of one patch with every patch of its photograph and of the nearest photographs."""
    opened = await run_in_threadpool(opened_of, request)
    view = view_of(request, opened)
    k = number_of(request, "k", 8, patch_grids.MOST_SIMILAR)
    found = PATCH.fullmatch(request.query_params.get("patch", ""))
    if not found:
        raise ServiceError(
            "bad-request",
            "patch: row and column on the photograph's grid were expected",
            "e.g. ?patch=3,14",
        )
    patch = int(found[1]), int(found[2])
    all_directions = await _directions(request, opened, view) if k else None

    def made(image: int) -> Response:
        similar_ones = patch_grids.similar(opened.store, image, patch, view, k, all_directions)
        return kept(request, opened.state, JsonText(similar_ones))

    return await _of_image(request, opened, made)


async def _directions(request: Request, opened: Opened, view: int) -> Directions | None:
    """Directions of all sealed images, made once; None where they would take too much memory."""
    store = opened.store
    n_bytes = 4 * store.n_images * store.spec.tokens.width
    if n_bytes > request.app.state.computations.kept_bytes // DIRECTIONS_SHARE:
        return None
    key = (opened.state, "directions", view)
    return await computations.run(request, key, lambda: directions(store, view))


def _predictions(request: Request, image_id: str) -> list[dict[str, Any]]:
    found = []
    for name, folder in library_of(request).sweep_folders.items():
        for each in out_of_fold.predictions(folder, image_id):
            found.append({"sweep": name} | each)
    return found


async def _of_image(request: Request, opened: Opened, function: Callable[[int], T]) -> T:
    """What function(image) gives for the sealed image that the request names.

    AT_ONCE such requests are computed together, the others wait their turn.
    """
    state = request.app.state
    # made by the first request: a limiter belongs to the event loop that it is made in
    if not hasattr(state, "images_at_once"):
        state.images_at_once = anyio.CapacityLimiter(AT_ONCE)
    return await anyio.to_thread.run_sync(
        lambda: function(sealed_image_of(request, opened)), limiter=state.images_at_once
    )
