"""Addresses of stores: the list of what is served, one store, and tables of all its images."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from featurestore.disk.held import is_held
from featurestore.disk.json_values import json_value
from featurestore.errors import BiomassError
from service.answers import computations
from service.answers.kept import OF, kept, tagged
from service.answers.openapi import VIEW, described
from service.answers.parameters import (
    EVERY,
    choice_of,
    every_of,
    library_of,
    name_of,
    opened_of,
    view_of,
)
from service.answers.tables import table_response
from service.errors import ServiceError, translated
from service.explore import maps
from service.explore.outliers import outliers
from service.explore.overview import overview as overview_of
from service.explore.sweeps import best, is_finished, state
from service.json_text import JsonText
from service.routes import filters
from service.served import Opened


def read_routes() -> list[Route]:
    """What is read and sent as it is."""
    return [Route("/v1/stores", listing), Route("/v1/stores/{s}", one)]


def computed_routes() -> list[Route]:
    """What is computed or made into tables."""
    address = "/v1/stores/{s}"
    return [
        Route(f"{address}/catalog.{{format}}", catalog),
        Route(f"{address}/stats.{{format}}", stats),
        Route(f"{address}/overview.json", overview),
        Route(f"{address}/odd.{{format}}", odd),
        Route(f"{address}/map.{{format}}", image_map),
    ]


@described("json", ())
def listing(request: Request) -> Response:
    """All that is served; stores and sweeps gone or damaged are named under `failing` instead."""
    library = library_of(request)
    failing = []

    def working(
        names: Iterable[str],
        describe_one: Callable[[str], dict[str, Any]],
    ) -> Iterator[dict[str, Any]]:
        for name in names:
            try:
                yield describe_one(name)
            # one that is gone must not take the list of all others with it
            except (ServiceError, BiomassError) as err:
                error = err
                if not isinstance(err, ServiceError):
                    error = translated(err, library.without_paths(str(err)))
                failing.append({"name": name, "kind": error.kind, "message": error.message})

    def store_of(name: str) -> dict[str, Any]:
        return describe(library.stores[name].now())

    def sweep_of(name: str) -> dict[str, Any]:
        return _sweep(name, library.sweep(name))

    stores = list(working(library.stores, store_of))
    sweeps = list(working(library.sweep_folders, sweep_of))
    predictions = library.predictions and {
        "name": library.predictions.name,
        "url": "/v1/predictions",
    }
    found = {"stores": stores, "sweeps": sweeps, "predictions": predictions, "failing": failing}
    return tagged(request, JSONResponse(found))


def _sweep(name: str, folder: Path) -> dict[str, Any]:
    """A sweep in the list of sweeps."""
    return {
        "name": name,
        "url": f"/v1/sweeps/{quote(name, safe='')}",
        "n_runs": sum(1 for _ in folder.glob("*/config.yaml")),
        "finished": is_finished(folder),
        "best": best(folder),
        "state": state(folder),
    }


def describe(opened: Opened) -> dict[str, Any]:
    """A store in the list of stores."""
    store = opened.store
    sealed_N = store.sealed
    # columns without rows, and one row: a catalog may have a million
    none = store.catalog_rows(slice(0, 0))
    first = store.catalog_rows(sealed_N[:1])["image_id"].tolist()
    return {
        "name": opened.name,
        "url": f"/v1/stores/{quote(opened.name, safe='')}",
        "format": "hdf5" if store.path in store.layout.sizes else "zarr",
        "n_images": store.n_images,
        "n_sealed": len(sealed_N),
        "n_room": store.layout.n,
        "being_built": is_held(store.path),
        "views": list(store.view_names),
        "has_patches": store.spec.has_patches,
        "map_methods": maps.offered(),
        "columns": list(_with_ours(none, np.empty(0, bool))),
        "first": first[0] if first else None,
        "fingerprint": store.spec.fingerprint,
        "generation": opened.generation,
        "state": opened.state,
    }


@described("json")
def one(request: Request) -> Response:
    """A store with its spec, its bytes, and shape and dtype of every array."""
    opened = opened_of(request)
    store = opened.store
    arrays = {
        name: {
            "shape": list(each.array.shape),
            "dtype": np.dtype(each.array.dtype).str,
            "dims": list(each.array.dims),
        }
        for name, each in store.layout.extents.items()
    }
    more = {
        "size_bytes": store.size_bytes,
        "spec": json.loads(store.spec.to_json()),
        "arrays": arrays,
    }
    return JSONResponse(describe(opened) | more)


@described("table", of=OF, every=EVERY)
async def catalog(request: Request) -> Response:
    """The catalog, a row an image, with its position and whether it is sealed."""
    opened = await run_in_threadpool(opened_of, request)
    frame = await computations.run(request, (opened.state, "catalog"), lambda: catalog_of(opened))
    if (every := every_of(request, opened)) > 1:
        frame = frame.iloc[opened.store.sealed[::every]]
    return table_response(request, frame, name_of(request, "format"), opened.state)


def catalog_of(opened: Opened) -> pd.DataFrame:
    """The catalog as it is served."""
    store = opened.store
    sealed_N = np.bincount(store.sealed, minlength=store.n_images).astype(bool)
    return _with_ours(store.catalog, sealed_N)


def _with_ours(frame: pd.DataFrame, sealed_N: np.ndarray) -> pd.DataFrame:
    """A catalog with its columns `position` and `sealed` behind the id."""
    ours = {"position": np.arange(len(frame)), "sealed": sealed_N}
    # a column of the user's that has such a name keeps its values under another
    rest = frame.rename(columns={name: f"{name} (catalog)" for name in ours if name in frame})
    ids = rest[["image_id"]]
    others = rest.drop(columns="image_id")
    return pd.concat([ids, pd.DataFrame(ours), others], axis=1)


@described("table", of=OF)
async def stats(request: Request) -> Response:
    """Statistics per view and kind of token, of all sealed images."""
    opened = await run_in_threadpool(opened_of, request)
    frame = await computations.run(request, (opened.state, "stats"), opened.store.stats)
    return table_response(request, frame, name_of(request, "format"), opened.state)


@described("json", errors=("not-found", "store-damaged", "store-gone"), of=OF)
async def overview(request: Request) -> Response:
    """What the store is: counts, grid, backbone, number of outliers, targets by State and date."""
    opened = await run_in_threadpool(opened_of, request)
    key = (opened.state, "overview")
    found = await computations.run(request, key, lambda: overview_of(opened.store))
    return kept(request, opened.state, JsonText(json_value(found)))


@described("table", of=OF)
async def odd(request: Request) -> Response:
    """Rows that are not finite, or far from the others of their view; worst first."""
    opened = await run_in_threadpool(opened_of, request)
    frame = await computations.run(request, (opened.state, "odd"), lambda: outliers(opened.store))
    return table_response(request, frame, name_of(request, "format"), opened.state)


@described(
    "table",
    errors=("not-found", "not-installed", "store-damaged", "store-gone"),
    of=OF,
    every=EVERY,
    view=VIEW,
    method=(
        "How directions become points.",
        {"type": "string", "enum": list(maps.METHODS), "default": "pca"},
    ),
)
async def image_map(request: Request) -> Response:
    """Positions of sealed images in two dimensions, by their class tokens in a view."""
    opened = await run_in_threadpool(opened_of, request)
    view = view_of(request, opened)
    method = choice_of(request, "method", tuple(maps.METHODS))
    frame = await filters.map_of(request, opened, method, view)
    frame = frame.iloc[:: every_of(request, opened)]
    return table_response(request, frame, name_of(request, "format"), opened.state)
