"""Addresses of a sweep: what it is, how far, its leaderboard, and a run's curves."""

from pathlib import Path
from urllib.parse import quote

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from featurestore.disk.json_values import json_value
from service.answers import computations
from service.answers.kept import OF, kept, tagged
from service.answers.openapi import described
from service.answers.parameters import library_of, name_of
from service.answers.tables import table_response
from service.explore import sweeps
from service.explore.progress import progress as progress_of
from service.json_text import JsonText


def routes() -> list[Route]:
    return [
        Route("/v1/sweeps/{w}", one_sweep),
        Route("/v1/sweeps/{w}/progress.json", progress),
        Route("/v1/sweeps/{w}/leaderboard.{format}", leaderboard),
        Route("/v1/sweeps/{w}/runs/{r}/curves.{format}", curves),
        Route("/v1/sweeps/{w}/runs/{r}/config.json", config),
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


@described("table", errors=("not-found",), of=OF)
def curves(request: Request) -> Response:
    """Loss and held-out score of every epoch, all folds together and each."""
    run = run_of(request)
    state = sweeps.state(run.parent)
    return table_response(request, sweeps.curves(run), name_of(request, "format"), state)


@described("json", errors=("not-found",), of=OF)
def config(request: Request) -> Response:
    """A run's config by dotted key, without what its kind ignores; of a blend nothing."""
    run = run_of(request)
    state = sweeps.state(run.parent)
    answer = JsonText(json_value({"name": run.name, "config": sweeps.config_of(run)}))
    return kept(request, state, answer)


def _sweep_of(request: Request) -> Path:
    return library_of(request).sweep(name_of(request, "w"))


def run_of(request: Request, sweep: str = "w", run: str = "r") -> Path:
    """The folder of the run that an address names."""
    folder = library_of(request).sweep(name_of(request, sweep))
    return sweeps.run_folder(folder, name_of(request, run))
