"""Addresses of lists of photographs: those that pass a filter, and what a filter may ask for."""

from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from featurestore.disk.json_values import json_value
from service.answers import computations
from service.answers.kept import OF, kept
from service.answers.openapi import described
from service.answers.parameters import EVERY, IMAGES, every_of, images_of, name_of, opened_of
from service.answers.tables import table_response
from service.explore import overview, photographs, pictures, sweeps
from service.json_text import JsonText
from service.routes import filters

ERRORS = ("not-found", "not-installed", "store-damaged", "store-gone")
OF_RUN = {name: filters.QUERY[name] for name in ("sweep", "run", "target")}


def routes() -> list[Route]:
    address = "/v1/stores/{s}"
    return [
        Route(f"{address}/photographs.{{format}}", table),
        Route(f"{address}/filters.json", choices),
        Route(f"{address}/thumbs.json", thumbs),
    ]


@described("table", errors=ERRORS, every=EVERY, **filters.QUERY)
async def table(request: Request) -> Response:
    """Sealed photographs that pass a filter, in an order, with a run's errors out of fold."""
    opened = await run_in_threadpool(opened_of, request)
    frame = await filters.photographs_of(request, opened)
    frame = frame.iloc[:: every_of(request, opened)]
    return table_response(request, frame, name_of(request, "format"))


@described("json", errors=ERRORS, **OF_RUN)
async def choices(request: Request) -> Response:
    """What a filter may ask for: groups, sites, days; runs, their targets and folds."""
    opened = await run_in_threadpool(opened_of, request)
    frame = await filters.listed_of(request, opened)

    # of every photograph words and days are counted
    def counted() -> dict[str, Any]:
        return photographs.choices(opened.store, frame)

    errors = await run_in_threadpool(filters.errors_of, request, opened)
    found = await computations.run(request, (opened.state, "choices", *errors.key), counted)

    def made() -> Response:
        if errors.run is None:
            targets = overview.target_columns(opened.store.catalog)
            of_run = {
                "run": None,
                "runs": [],
                "folds": [],
                "targets": targets,
                "classes": [],
            }
        else:
            of_run = {
                "run": errors.run.name,
                "runs": sweeps.runs_with_oof(errors.run.parent),
                "folds": sweeps.fold_names(errors.run),
                "targets": sweeps.told_targets(errors.run),
                "classes": sweeps.told_class_names(errors.run),
            }
        return JsonText(json_value(found | of_run | {"target": errors.target}))

    return await run_in_threadpool(made)


@described("json", errors=ERRORS, of=OF, image=IMAGES)
async def thumbs(request: Request) -> Response:
    """Thumbnails of several photographs, each a JPEG in base64; null where there is none."""
    opened = await run_in_threadpool(opened_of, request)
    names = images_of(request)

    def made() -> Response:
        store = opened.store
        known = [name for name in names if name in store]
        found = pictures.thumbs_base64(store, [store.index(name) for name in known])
        by_name = dict(zip(known, found, strict=True))
        answer = JsonText({"thumbs": [by_name.get(name) for name in names]})
        return kept(request, opened.state, answer)

    return await run_in_threadpool(made)
