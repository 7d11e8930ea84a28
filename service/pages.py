"""The page's addresses: what a person looks at, of stores and of sweeps. Asked, computed elsewhere,
answered."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import anyio
import pandas as pd
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from featurestore.disk.json_values import plain
from featurestore.explore import pictures as explore
from service import heat, heavy, look, maps, pictures, sweeps
from service.asked import (
    choice_of,
    library_of,
    name_of,
    number_of,
    opened_of,
    sealed_image_of,
    view_of,
)
from service.errors import ServiceError
from service.library import Opened
from service.odd import odd as odd_rows
from service.openapi import described
from service.tables import table_response

STATIC = Path(__file__).parent / "static"
AT_ONCE = 4  # requests about one image that are computed together, at some 100 MB each; others wait
PATCH = re.compile(r"(\d{1,6}),(\d{1,6})", re.ASCII)
VIEW = ("A view's name or position.", {"type": "string", "default": "0"})
CELL = (
    "Row and column on the photograph's grid: 3,14.",
    {"type": "string", "pattern": r"^\d{1,6},\d{1,6}$"},
    True,
)
NEAREST = (
    "How many of the nearest photographs.",
    {"type": "integer", "minimum": 0, "maximum": heat.MOST_SIMILAR},
)
OF_IMAGE = ("not-found", "not-sealed", "store-damaged", "store-gone")

PREDICTION = ["sweep", "run", "target", "true", "predicted"]

T = TypeVar("T")


def shell() -> list[BaseRoute]:
    """The page itself, which asks for the rest."""
    return [Route("/", index), Mount("/static", StaticFiles(directory=STATIC))]


def routes() -> list[Route]:
    """What the page asks for, and every program may."""
    return [
        *_below(
            "/v1/stores/{s}",
            {"/overview.json": overview, "/odd.{format}": odd, "/map.{format}": image_map},
        ),
        *_below(
            "/v1/stores/{s}/images/{image}",
            {
                "": card,
                "/nearest.{format}": nearest,
                "/predictions.{format}": predictions,
                "/views.{format}": views,
                "/thumb.jpg": thumb,
                "/photograph.jpg": photograph,
                "/pca.png": pca,
                "/norms.json": norms,
                "/similar.json": similar,
            },
        ),
        *_below("/v1/sweeps/{w}", {"": one_sweep, "/leaderboard.{format}": leaderboard}),
        *_below("/v1/sweeps/{w}/runs/{r}", {"/oof.{format}": oof, "/curves.{format}": curves}),
    ]


def _below(address: str, endpoints: dict[str, Callable]) -> list[Route]:
    return [Route(address + rest, endpoint) for rest, endpoint in endpoints.items()]


@described("html", errors=())
def index(request: Request) -> Response:
    """The page."""
    return FileResponse(STATIC / "index.html")


# -- a store


@described("json", errors=("not-found", "store-damaged", "store-gone"))
async def overview(request: Request) -> Response:
    """What the store is: counts, grid, backbone, how many rows are odd, targets by State and
    date."""
    opened = await run_in_threadpool(opened_of, request)
    return _json(
        await heavy.run(request, (opened.state, "overview"), lambda: look.overview(opened.store))
    )


@described("table")
async def odd(request: Request) -> Response:
    """Rows that are not finite, or whose statistics lie far from the others' of their view; worst
    first."""
    opened = await run_in_threadpool(opened_of, request)
    frame = await heavy.run(request, (opened.state, "odd"), lambda: odd_rows(opened.store))
    return table_response(request, frame, name_of(request, "format"))


@described(
    "table",
    errors=("not-found", "not-installed", "store-damaged", "store-gone"),
    view=VIEW,
    method=(
        "How directions become points.",
        {"type": "string", "enum": list(maps.METHODS), "default": "pca"},
    ),
)
async def image_map(request: Request) -> Response:
    """Where sealed images lie beside each other in two dimensions, by their class tokens in a
    view."""
    opened = await run_in_threadpool(opened_of, request)
    view, method = view_of(request, opened), choice_of(request, "method", tuple(maps.METHODS))
    frame = await heavy.run(
        request,
        (opened.state, "map", method, view),
        lambda: maps.image_map(opened.store, method, view),
    )
    return table_response(request, frame, name_of(request, "format"))


# -- an image


@described("json", errors=OF_IMAGE, view=VIEW, k=NEAREST)
async def card(request: Request) -> Response:
    """Labels, norms, nearest photographs, and what the served sweeps predict for it out of fold."""
    opened = await run_in_threadpool(opened_of, request)
    view, k = view_of(request, opened), number_of(request, "k", 12, heat.MOST_SIMILAR, least=1)

    def made(image: int) -> bytes:
        found = look.image_card(opened.store, image, k, view)
        return _encoded(found | {"predictions": _predictions(request, found["image_id"])})

    return Response(await _of_image(request, opened, made), media_type="application/json")


def _predictions(request: Request, image_id: str) -> list[dict[str, Any]]:
    return [
        {"sweep": name} | each
        for name, folder in library_of(request).sweep_folders.items()
        for each in sweeps.predictions(folder, image_id)
    ]


@described("table", errors=OF_IMAGE, view=VIEW, k=NEAREST)
async def nearest(request: Request) -> Response:
    """The nearest photographs by class token in a view, with their targets; most similar first."""
    opened = await run_in_threadpool(opened_of, request)
    view, k = view_of(request, opened), number_of(request, "k", 12, heat.MOST_SIMILAR, least=1)
    frame = await _of_image(
        request,
        opened,
        lambda image: explore.nearest(opened.store, image, k, view).drop(columns="path"),
    )
    return table_response(request, frame, name_of(request, "format"))


@described("table", errors=OF_IMAGE)
async def predictions(request: Request) -> Response:
    """What the served sweeps predict for it out of fold, a row a run and target; averaged over
    repeats."""
    opened = await run_in_threadpool(opened_of, request)
    found = await _of_image(
        request, opened, lambda image: _predictions(request, opened.store.image_ids[image])
    )
    return table_response(
        request, pd.DataFrame(found, columns=PREDICTION), name_of(request, "format")
    )


@described("table", errors=OF_IMAGE)
async def views(request: Request) -> Response:
    """Its views: mean norms of class and patch tokens, and how many of their values are not
    finite."""
    opened = await run_in_threadpool(opened_of, request)
    found = await _of_image(request, opened, lambda image: look.view_norms(opened.store, image))
    return table_response(request, pd.DataFrame(found), name_of(request, "format"))


@described("jpeg", errors=OF_IMAGE)
async def thumb(request: Request) -> Response:
    """The stored thumbnail."""
    opened = await run_in_threadpool(opened_of, request)
    return Response(
        await _of_image(request, opened, partial(pictures.thumb_jpeg, opened.store)),
        media_type="image/jpeg",
    )


@described("jpeg", errors=OF_IMAGE)
async def photograph(request: Request) -> Response:
    """The photograph where the server has it, else the thumbnail; the header X-Photograph says
    which, and whether it changed."""
    opened, data = await run_in_threadpool(opened_of, request), library_of(request).data
    body, state = await _of_image(
        request, opened, lambda image: pictures.photograph_jpeg(opened.store, image, data)
    )
    return Response(body, headers={"X-Photograph": state}, media_type="image/jpeg")


@described("png", errors=OF_IMAGE, view=VIEW)
async def pca(request: Request) -> Response:
    """The patch tokens' principal components as colours, a patch a pixel, upright."""
    opened = await run_in_threadpool(opened_of, request)
    view = view_of(request, opened)
    body = await _of_image(
        request, opened, lambda image: pictures.pca_png(opened.store, image, view)
    )
    return Response(body, media_type="image/png")


@described("json", errors=OF_IMAGE, view=VIEW)
async def norms(request: Request) -> Response:
    """Norm of each patch token on the photograph's grid."""
    opened = await run_in_threadpool(opened_of, request)
    view = view_of(request, opened)
    body = await _of_image(
        request, opened, lambda image: _dumped(heat.norms(opened.store, image, view))
    )
    return Response(body, media_type="application/json")


@described("json", errors=OF_IMAGE, view=VIEW, k=NEAREST, patch=CELL)
async def similar(request: Request) -> Response:
    """Cosine of one patch with every patch of its photograph and of the nearest photographs."""
    opened = await run_in_threadpool(opened_of, request)
    view, k = view_of(request, opened), number_of(request, "k", 8, heat.MOST_SIMILAR)
    found = PATCH.fullmatch(request.query_params.get("patch", ""))
    if not found:
        raise ServiceError(
            "bad-request",
            "patch: row and column on the photograph's grid were expected",
            "e.g. ?patch=3,14",
        )
    patch = int(found[1]), int(found[2])
    body = await _of_image(
        request, opened, lambda image: _dumped(heat.similar(opened.store, image, patch, view, k))
    )
    return Response(body, media_type="application/json")


async def _of_image(request: Request, opened: Opened, function: Callable[[int], T]) -> T:
    """What function(image) gives of the sealed image asked for; of such work AT_ONCE at a time, the
    others wait their turn."""
    state = request.app.state
    if not hasattr(state, "images_at_once"):
        state.images_at_once = anyio.CapacityLimiter(AT_ONCE)
    return await anyio.to_thread.run_sync(
        lambda: function(sealed_image_of(request, opened)), limiter=state.images_at_once
    )


# -- a sweep


@described("json", errors=("not-found",))
async def one_sweep(request: Request) -> Response:
    """Settings in words, runs with their parameters, baselines, the honest estimate."""
    folder = _sweep_of(request)
    stamp = await run_in_threadpool(sweeps.stamp, folder / "sweep.json")
    plan = await heavy.run(request, ("plan", stamp), lambda: sweeps.plan(folder))
    found = await run_in_threadpool(sweeps.describe, folder, plan)
    name = name_of(request, "w")
    return _json({"name": name, "url": f"/v1/sweeps/{quote(name, safe='')}", **found})


@described("table", errors=("not-found",))
def leaderboard(request: Request) -> Response:
    """Every point's scores, ranked, and the baselines."""
    return table_response(
        request, sweeps.leaderboard(_sweep_of(request)), name_of(request, "format")
    )


@described(
    "table",
    errors=("not-found",),
    weights=("Of which epoch.", {"type": "string", "enum": list(sweeps.WEIGHTS)}),
    averaged=("1: over repeats.", {"type": "integer", "enum": [0, 1], "default": 0}),
)
async def oof(request: Request) -> Response:
    """Out-of-fold predictions of a run, a row an image and target; averaged over repeats if
    asked."""
    run = await run_in_threadpool(_run_of, request)
    weights = (
        choice_of(request, "weights", sweeps.WEIGHTS) if "weights" in request.query_params else None
    )
    averaged = choice_of(request, "averaged", ("0", "1")) == "1"
    key = ("oof", sweeps.stamp(run / "oof.csv"), weights, averaged)
    frame = await heavy.run(request, key, lambda: sweeps.oof(run, weights, averaged))
    return table_response(request, frame, name_of(request, "format"))


@described("table", errors=("not-found",))
def curves(request: Request) -> Response:
    """Loss and held-out score of every epoch, all folds together and each."""
    return table_response(request, sweeps.curves(_run_of(request)), name_of(request, "format"))


def _sweep_of(request: Request) -> Path:
    return library_of(request).sweep(name_of(request, "w"))


def _run_of(request: Request) -> Path:
    return sweeps.run_folder(_sweep_of(request), name_of(request, "r"))


# -- answers


def _json(value: Any) -> Response:
    return Response(_encoded(value), media_type="application/json")


def _encoded(value: Any) -> bytes:
    return _dumped(plain(value))


def _dumped(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode(
        errors="backslashreplace"
    )
