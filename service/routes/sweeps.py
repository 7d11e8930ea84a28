"""Addresses of a sweep: what it is, its leaderboard, and a run's predictions and curves."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from featurestore.disk.json_values import json_value
from featurestore.disk.tables import find_table
from service.answers import computations
from service.answers.kept import OF, kept, tagged
from service.answers.openapi import described
from service.answers.parameters import choice_of, library_of, name_of
from service.answers.tables import table_response
from service.explore import beside, out_of_fold, sweeps
from service.explore.progress import progress as progress_of
from service.json_text import JsonText

BESIDE = "/v1/sweeps/{w}/runs/{r}/beside/{w2}/{r2}"


def routes() -> list[Route]:
    return [
        Route("/v1/sweeps/{w}", one_sweep),
        Route("/v1/sweeps/{w}/progress.json", progress),
        Route("/v1/sweeps/{w}/leaderboard.{format}", leaderboard),
        Route("/v1/sweeps/{w}/runs/{r}/oof.{format}", oof),
        Route("/v1/sweeps/{w}/runs/{r}/curves.{format}", curves),
        Route(f"{BESIDE}/scores.{{format}}", scores_beside),
        Route(f"{BESIDE}/photographs.{{format}}", photographs_beside),
    ]


@described("json", errors=("not-found",), of=OF)
async def one_sweep(request: Request) -> Response:
    """Settings in words, runs with their parameters, baselines, the honest estimate."""
    folder = _sweep_of(request)
    state = await run_in_threadpool(sweeps.state, folder)
    stamp = await run_in_threadpool(sweeps.stamp, folder / "sweep.json")
    # kept by the file's stamp alone: `state` changes with every epoch of a sweep under way
    plan = await computations.run(request, ("plan", stamp), lambda: sweeps.plan(folder))
    found = await run_in_threadpool(sweeps.describe, folder, plan)
    name = name_of(request, "w")
    url = f"/v1/sweeps/{quote(name, safe='')}"
    answer = JsonText(json_value({"name": name, "url": url, "state": state, **found}))
    return kept(request, state, answer)


@described("json", errors=("not-found",))
def progress(request: Request) -> Response:
    """Epochs of a sweep that is being trained, its scores so far, and whether it runs."""
    found = progress_of(_sweep_of(request))
    return tagged(request, JsonText(json_value(found)))


@described("table", errors=("not-found",), of=OF)
def leaderboard(request: Request) -> Response:
    """Every point's scores, ranked, and the baselines."""
    folder = _sweep_of(request)
    state = sweeps.state(folder)
    frame = sweeps.leaderboard(folder)
    return table_response(request, frame, name_of(request, "format"), state)


@described(
    "table",
    errors=("not-found",),
    of=OF,
    weights=("Of which epoch.", {"type": "string", "enum": list(out_of_fold.WEIGHTS)}),
    averaged=("1: over repeats.", {"type": "integer", "enum": [0, 1], "default": 0}),
)
async def oof(request: Request) -> Response:
    """Out-of-fold predictions of a run, a row an image and target, optionally averaged."""
    run = await run_in_threadpool(_run_of, request)
    weights = None
    if "weights" in request.query_params:
        weights = choice_of(request, "weights", out_of_fold.WEIGHTS)
    averaged = choice_of(request, "averaged", ("0", "1")) == "1"
    state = await run_in_threadpool(sweeps.state, run.parent)
    key = ("oof", sweeps.stamp(find_table(run / "oof.csv")), weights, averaged)
    frame = await computations.run(request, key, lambda: out_of_fold.oof(run, weights, averaged))
    return table_response(request, frame, name_of(request, "format"), state)


@described("table", errors=("not-found",), of=OF)
def curves(request: Request) -> Response:
    """Loss and held-out score of every epoch, all folds together and each."""
    run = _run_of(request)
    state = sweeps.state(run.parent)
    return table_response(request, sweeps.curves(run), name_of(request, "format"), state)


@described("table", errors=("not-found",), of=OF)
async def scores_beside(request: Request) -> Response:
    """Scores of two runs on what both predicted, and their paired difference with its interval."""
    return await _beside(request, beside.scores)


@described("table", errors=("not-found",), of=OF)
async def photographs_beside(request: Request) -> Response:
    """What two runs predict of each photograph and target, averaged over repeats."""
    return await _beside(request, beside.photographs)


async def _beside(request: Request, make: Callable[[Path, Path], pd.DataFrame]) -> Response:
    """A table of the runs {r} of {w} and {r2} of {w2}; kept where both are of one sweep."""
    a = await run_in_threadpool(_run_of, request)
    b = await run_in_threadpool(_run_of, request, "w2", "r2")
    # an answer of two sweeps has no one state that says whether it still holds
    state = None
    if a.parent == b.parent:
        state = await run_in_threadpool(sweeps.state, a.parent)
    stamps = [sweeps.stamp(find_table(each / "oof.csv")) for each in (a, b)]
    key = ("beside", make.__name__, *stamps)
    frame = await computations.run(request, key, lambda: make(a, b))
    return table_response(request, frame, name_of(request, "format"), state)


def _sweep_of(request: Request, sweep: str = "w") -> Path:
    return library_of(request).sweep(name_of(request, sweep))


def _run_of(request: Request, sweep: str = "w", run: str = "r") -> Path:
    return sweeps.run_folder(_sweep_of(request, sweep), name_of(request, run))
