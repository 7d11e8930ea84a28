"""Addresses of predictions out of fold: of a run, and of two runs beside each other.

Whoever draws a million of them asks for some (`every`) and for figures of all (`errors.json`).
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from featurestore.disk.json_values import json_value
from featurestore.disk.tables import find_table
from service.answers import computations
from service.answers.kept import OF, kept
from service.answers.openapi import described
from service.answers.parameters import choice_of, name_of, number_of
from service.answers.tables import table_response
from service.errors import ServiceError
from service.explore import beside, figures, out_of_fold, sweeps
from service.explore.photographs import split_of
from service.json_text import JsonText
from service.routes import filters
from service.routes.sweeps import run_of

RUN = "/v1/sweeps/{w}/runs/{r}"
BESIDE = f"{RUN}/beside/{{w2}}/{{r2}}"
ERRORS = ("not-found", "not-installed", "store-damaged", "store-gone")
MOST_EVERY = 10**9
EVERY = (
    "Every so many of the photographs alone.",
    {"type": "integer", "minimum": 1, "default": 1},
)
BOOLEAN = {"type": "integer", "enum": [0, 1], "default": 0}
OF_ROWS = {
    "weights": ("Of which epoch.", {"type": "string", "enum": list(out_of_fold.WEIGHTS)}),
    "averaged": ("1: over repeats.", BOOLEAN),
    **filters.OF_STORE,
}
TARGET = ("Of this target alone.", {"type": "string"})
APART = ("1: those on which they differ most first; of one target.", BOOLEAN)


def routes() -> list[Route]:
    return [
        Route(f"{RUN}/oof.{{format}}", oof),
        Route(f"{RUN}/errors.json", errors),
        Route(f"{BESIDE}/scores.{{format}}", scores_beside),
        Route(f"{BESIDE}/photographs.{{format}}", photographs_beside),
        Route(f"{BESIDE}/errors.json", errors_beside),
    ]


# -- one run


@described("table", errors=ERRORS, of=OF, every=EVERY, **OF_ROWS)
async def oof(request: Request) -> Response:
    """Out-of-fold predictions of a run, a row an image and target, optionally averaged.

    Of one fold, or of the photographs of a store that pass a filter, where those are given.
    """
    run = await run_in_threadpool(run_of, request)
    wide, key = await _rows_of(request, run)
    every = number_of(request, "every", 1, MOST_EVERY, least=1)
    make = partial(out_of_fold.by_target, run, wide.iloc[::every])
    # the whole table is asked for in parts
    is_whole = key is not None and every == 1
    if is_whole:
        frame = await computations.run(request, ("oof", *key), make)
    else:
        frame = await run_in_threadpool(make)
    return table_response(request, frame, name_of(request, "format"), await _state_of(request, run))


@described("json", errors=ERRORS, of=OF, **OF_ROWS)
async def errors(request: Request) -> Response:
    """Folds of a run, and by target the error of all the rows that `oof` tells."""
    run = await run_in_threadpool(run_of, request)
    wide, key = await _rows_of(request, run)
    make = partial(figures.of_run, run, wide)
    if key is None:
        found = await run_in_threadpool(make)
    else:
        found = await computations.run(request, ("figures", *key), make)
    return kept(request, await _state_of(request, run), JsonText(json_value(found)))


async def _rows_of(request: Request, run: Path) -> tuple[pd.DataFrame, tuple | None]:
    """What a request means of a run, a row a photograph; what it is known by, where that is all."""
    weights = None
    if "weights" in request.query_params:
        weights = choice_of(request, "weights", out_of_fold.WEIGHTS)
    repeat, fold = split_of(request.query_params.get("fold"))
    # an average over repeats tells no fold of one of them
    averaged = choice_of(request, "averaged", ("0", "1")) == "1" and repeat is None
    wide, key = await filters.by_image_of(request, run, weights, averaged)
    ids = await filters.ids_of(request)
    if fold is None and ids is None:
        return wide, key

    def narrowed() -> pd.DataFrame:
        found = out_of_fold.held_out(wide, repeat, fold)
        return found if ids is None else found[found["image_id"].isin(ids)]

    return await run_in_threadpool(narrowed), None


async def _state_of(request: Request, *runs: Path) -> str | None:
    """By what a browser may keep an answer; None where it is not of one sweep alone."""
    sweep, *others = {run.parent for run in runs}
    if others or "store" in request.query_params:
        return None
    return await run_in_threadpool(sweeps.state, sweep)


# -- two runs


@described("table", errors=("not-found",), of=OF)
async def scores_beside(request: Request) -> Response:
    """Scores of two runs on what both predicted, and their paired difference with its interval."""
    a, b = await _two_of(request)
    wides = await _wides_of(request, a, b)
    for k, run in enumerate((a, b)):
        # an average of a single repeat is that repeat's table, which the page has asked for
        if wides[k]["repeat"].isna().any():
            wides[k], _ = await filters.by_image_of(request, run, averaged=False)
    key = ("beside", "scores", *_stamps(a, b))
    frame = await computations.run(request, key, partial(beside.scores, a, b, wides))
    state = await _state_of(request, a, b)
    return table_response(request, frame, name_of(request, "format"), state)


@described(
    "table",
    errors=ERRORS,
    of=OF,
    every=EVERY,
    apart=APART,
    **(filters.OF_STORE | {"target": TARGET}),
)
async def photographs_beside(request: Request) -> Response:
    """What two runs predict of each photograph and target, averaged over repeats.

    Of a store `every` counts its photographs, as its map does.
    """
    a, b = await _two_of(request)
    both = await _both_of(request, a, b, await _wides_of(request, a, b))
    ids = await filters.ids_of(request)
    target = request.query_params.get("target")
    is_apart = choice_of(request, "apart", ("0", "1")) == "1"
    if is_apart and target is None:
        raise ServiceError("bad-request", "apart=1 is of one target", "add target=NAME")
    every = number_of(request, "every", 1, MOST_EVERY, least=1)

    def made() -> pd.DataFrame:
        if is_apart:
            rows = _among(both, ids)
            size_N = np.abs(figures.gain(rows, target in sweeps.told_class_names(a)))
            furthest_first = np.argsort(-size_N, kind="stable")
            return rows.iloc[furthest_first[: np.isfinite(size_N).sum()]].iloc[::every]
        if ids is not None:
            return _among(both, ids.iloc[::every])
        return both.iloc[::every] if target else _every_photograph(both, every)

    frame = await run_in_threadpool(made)
    state = await _state_of(request, a, b)
    return table_response(request, frame, name_of(request, "format"), state)


@described("json", errors=ERRORS, of=OF, **(filters.OF_STORE | {"target": TARGET}))
async def errors_beside(request: Request) -> Response:
    """The targets of which both runs tell an error; of one: on how many photographs B is nearer."""
    a, b = await _two_of(request)
    wides = await _wides_of(request, a, b)
    target = request.query_params.get("target")
    both = None
    if target is not None:
        both = await _both_of(request, a, b, wides)
    ids = await filters.ids_of(request)

    def made() -> dict[str, Any]:
        of_a, of_b = map(out_of_fold.known_targets, (a, b), wides)
        found: dict[str, Any] = {"targets": [name for name in of_a if name in of_b]}
        if both is not None:
            found |= figures.of_two(_among(both, ids), target in sweeps.told_class_names(a))
        return found

    found = await run_in_threadpool(made)
    return kept(request, await _state_of(request, a, b), JsonText(json_value(found)))


async def _wides_of(request: Request, a: Path, b: Path) -> list[pd.DataFrame]:
    """The tables of both runs, see `out_of_fold.by_image`, averaged."""
    return [(await filters.by_image_of(request, run))[0] for run in (a, b)]


async def _both_of(
    request: Request,
    a: Path,
    b: Path,
    wides: list[pd.DataFrame],
) -> pd.DataFrame:
    """What two runs tell of the target that a request names, see `beside.photographs`."""
    target = request.query_params.get("target")
    key = ("beside", "photographs", *_stamps(a, b), target)
    make = partial(beside.photographs, a, b, target, wides)
    return await computations.run(request, key, make)


def _among(both: pd.DataFrame, ids: pd.Series | None) -> pd.DataFrame:
    """Rows of these photographs; None is all."""
    return both if ids is None else both[both["image_id"].isin(ids)]


def _every_photograph(both: pd.DataFrame, every: int) -> pd.DataFrame:
    """Rows of every so many photographs, all targets of each."""
    return both if every == 1 else both[pd.factorize(both["image_id"])[0] % every == 0]


async def _two_of(request: Request) -> tuple[Path, Path]:
    """The runs {r} of {w} and {r2} of {w2}."""
    a = await run_in_threadpool(run_of, request)
    return a, await run_in_threadpool(run_of, request, "w2", "r2")


def _stamps(*runs: Path) -> list[sweeps.Stamp]:
    return [sweeps.stamp(find_table(run / "oof.csv")) for run in runs]
