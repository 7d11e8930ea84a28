"""What a request's filter means: which photographs, of which run's errors, in which order."""

import math
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pandas as pd
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from featurestore.disk.tables import find_table
from featurestore.errors import BiomassError
from service.answers import computations
from service.answers.parameters import choice_of, library_of, opened_of
from service.errors import ServiceError
from service.explore import maps, out_of_fold, overview, photographs, sweeps
from service.explore.photographs import ORDERS, SIGNS, Filter
from service.served import Opened

GROUP = "in."  # before a column's name
DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
MOST_CORNERS = 200
TEXT = {"type": "string"}
BOTH_WAYS = tuple(sign + name for name in ORDERS for sign in ("", "-"))
QUERY = {
    "sweep": ("A sweep, whose errors stand beside.", TEXT),
    "run": ("A run of it; its best one without.", TEXT),
    "target": ("Of which errors are; the weightiest without.", TEXT),
    "fold": ("What one fold held out alone: 2, or 1.2 of repeat 1.", TEXT),
    "in.COLUMN": ("With any column's name: photographs that have this value there.", TEXT),
    "site": ("A site.", TEXT),
    "from": ("The first day, 2015-07-21.", TEXT | {"format": "date"}),
    "to": ("The last day.", TEXT | {"format": "date"}),
    "sign": ("More or less is predicted than is true.", TEXT | {"enum": list(SIGNS)}),
    "off": ("The least size of the error.", {"type": "number", "minimum": 0}),
    "lasso": ("Method, view, then x and y of each corner of a polygon on that map.", TEXT),
    "among": ("Ids with commas, each percent-encoded: these alone, in this order.", TEXT),
    "order": (
        "A column, or off: the size of the error; a minus before it turns it round.",
        TEXT | {"enum": list(BOTH_WAYS)},
    ),
}

OF_STORE = {"store": ("A store: its photographs that pass the filter alone.", TEXT), **QUERY}


@dataclass(frozen=True)
class Errors:
    """Whose errors stand beside photographs."""

    run: Path | None
    target: str | None
    fold: str | None

    @property
    def key(self) -> tuple:
        """What a table of them is known by."""
        file = self.run and sweeps.stamp(find_table(self.run / "oof.csv"))
        return file, self.target, self.fold


def is_filtered(request: Request) -> bool:
    """Whether the request names photographs, or an order of them."""
    names = request.query_params
    # `view` and `k` say nothing of which photographs are meant
    return any(name.startswith(GROUP) or name in QUERY for name in names)


async def photographs_of(request: Request, opened: Opened) -> pd.DataFrame:
    """The photographs that a request means, in its order: see `photographs.listed`.

    ServiceError `bad-request` for a filter that cannot be read, `not-found` for an unknown run.
    """
    wanted, lasso_map = _filter_of(request, opened)
    table = await listed_of(request, opened, wanted.reads_errors)
    place_N2 = None
    if lasso_map:
        image_map = await map_of(request, opened, *lasso_map)
        place_N2 = image_map[["x", "y"]].to_numpy(float)
    catalog = opened.store.catalog
    return await run_in_threadpool(photographs.chosen, table, catalog, wanted, place_N2)


async def ids_of(request: Request) -> pd.Series | None:
    """Ids of the photographs of the store `?store=` that pass the filter; None without a store."""
    name = request.query_params.get("store")
    if name is None:
        return None
    opened = await run_in_threadpool(opened_of, request, name)
    found = await photographs_of(request, opened)
    return found["image_id"]


async def listed_of(request: Request, opened: Opened, needs_errors: bool = False) -> pd.DataFrame:
    """All sealed photographs with the errors of the run that a request names."""
    errors = await run_in_threadpool(errors_of, request, opened, needs_errors)
    try:
        return await _listed(request, opened, errors)
    except BiomassError:
        # a list of photographs does not need a table of errors that cannot be read
        if needs_errors or errors.fold or errors.run is None:
            raise
        return await _listed(request, opened, replace(errors, run=None))


async def _listed(request: Request, opened: Opened, errors: Errors) -> pd.DataFrame:
    wide = None
    if errors.run is not None:
        repeat, _ = photographs.split_of(errors.fold)
        wide, _ = await by_image_of(request, errors.run, averaged=repeat is None)

    def made() -> pd.DataFrame:
        return photographs.listed(opened.store, errors.run, errors.target, errors.fold, wide)

    return await computations.run(request, (opened.state, "photographs", *errors.key), made)


async def by_image_of(
    request: Request,
    run: Path,
    weights: str | None = None,
    averaged: bool = True,
) -> tuple[pd.DataFrame, tuple]:
    """A run's table, see `out_of_fold.by_image`, and what it is known by."""
    key = (sweeps.stamp(find_table(run / "oof.csv")), weights, averaged)
    make = partial(out_of_fold.by_image, run, weights, averaged)
    return await computations.run(request, ("by image", *key), make), key


def errors_of(request: Request, opened: Opened, needs_errors: bool = False) -> Errors:
    """Whose errors a request means; without a run where it names no sweep, or one that tells none.

    ServiceError for an unknown sweep or run; if errors are needed, for one that tells none, too.
    """
    query = request.query_params
    fold = query.get("fold")
    target = query.get("target")
    without = Errors(None, target or overview.first_target(opened.store.catalog), None)
    if "sweep" not in query:
        if needs_errors or fold or "run" in query:
            raise ServiceError(
                "bad-request",
                "errors and folds are those of a run",
                "add sweep=NAME",
            )
        return without
    sweep = query["sweep"]
    folder = library_of(request).sweep(sweep)
    name = query.get("run") or sweeps.first_run(folder, target)
    if name is None:
        if needs_errors or fold:
            raise ServiceError("not-found", f"no run of {sweep!r} has an out-of-fold table yet")
        return without
    run = sweeps.run_folder(folder, name)
    told = sweeps.told_targets(run)
    if target and target not in told:
        if needs_errors:
            hint = f"it predicts {', '.join(told)}"
            raise ServiceError("not-found", f"{name} has no target {target[:40]!r}", hint)
        return without
    return Errors(run, target or sweeps.targets_of(run).foremost.name, fold)


def _filter_of(request: Request, opened: Opened) -> tuple[Filter, tuple[str, int] | None]:
    """The filter, and method and view of the map that its lasso lies on."""
    query = request.query_params
    groups = []
    for name, value in query.multi_items():
        if name.startswith(GROUP):
            groups.append((name.removeprefix(GROUP), value))
    corners, lasso_map = _lasso_of(query.get("lasso"), opened)
    # split before they are decoded, so that an id may hold a comma
    among = query["among"].split(",") if "among" in query else []
    wanted = Filter(
        groups=tuple(groups),
        site=query.get("site"),
        first=_day_of(query.get("from"), "from"),
        last=_day_of(query.get("to"), "to"),
        sign=choice_of(request, "sign", SIGNS) if "sign" in query else None,
        off=_size_of(query.get("off")),
        lasso=corners,
        among=tuple(map(unquote, among)),
        order=choice_of(request, "order", BOTH_WAYS),
    )
    return wanted, lasso_map


def _day_of(text: str | None, name: str) -> str | None:
    if text is not None and not DAY.fullmatch(text):
        raise ServiceError("bad-request", f"{name}={text[:40]!r}: a day as 2015-07-21 was expected")
    return text


def _size_of(text: str | None) -> float | None:
    if text is None:
        return None
    size = _number(text)
    if not size >= 0:  # NaN is not either
        raise ServiceError("bad-request", f"off={text[:40]!r}: a number, 0 or more, was expected")
    return size


def _lasso_of(text: str | None, opened: Opened) -> tuple[tuple[float, ...], tuple[str, int] | None]:
    if text is None:
        return (), None
    # two empty ones behind it: a text of fewer parts is refused below, and not by unpacking
    method, view, *rest = [*text.split(","), "", ""]
    corners = tuple(_number(each) for each in rest[:-2])
    views = opened.store.view_names
    # x and y of each; what is left out makes it odd
    is_polygon = len(corners) % 2 == 0 and 6 <= len(corners) <= 2 * MOST_CORNERS
    is_known = method in maps.METHODS and view in views
    if not is_known or not is_polygon or not np.isfinite(corners).all():
        raise ServiceError(
            "bad-request",
            f"lasso={text[:40]!r}: a method, a view, and x and y of 3 to {MOST_CORNERS} corners "
            "were expected",
            "e.g. lasso=pca,plain,0,0,1,0,1,1",
        )
    return corners, (method, views.index(view))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


async def map_of(
    request: Request,
    opened: Opened,
    method: str,
    view: int,
) -> pd.DataFrame:
    """The map of a store's sealed images: see `maps.image_map`."""

    def made() -> Any:
        return maps.image_map(opened.store, method, view)

    return await computations.run(request, (opened.state, "map", method, view), made)
