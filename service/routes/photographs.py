"""Addresses of lists of photographs: those that pass a filter, and what a filter may ask for."""

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from featurestore.disk.json_values import json_value
from service.answers.openapi import described
from service.answers.parameters import name_of, opened_of
from service.answers.tables import table_response
from service.explore import overview, photographs, sweeps
from service.json_text import JsonText
from service.routes import filters

ERRORS = ("not-found", "not-installed", "store-damaged", "store-gone")
OF_RUN = {name: filters.QUERY[name] for name in ("sweep", "run", "target")}


def routes() -> list[Route]:
    address = "/v1/stores/{s}"
    return [
        Route(f"{address}/photographs.{{format}}", table),
        Route(f"{address}/filters.json", choices),
    ]


@described("table", errors=ERRORS, **filters.QUERY)
async def table(request: Request) -> Response:
    """Sealed photographs that pass a filter, in an order, with a run's errors out of fold."""
    opened = await run_in_threadpool(opened_of, request)
    frame = await filters.photographs_of(request, opened)
    return table_response(request, frame, name_of(request, "format"))


@described("json", errors=ERRORS, **OF_RUN)
async def choices(request: Request) -> Response:
    """What a filter may ask for: groups, sites, days; runs, their targets and folds."""
    opened = await run_in_threadpool(opened_of, request)
    frame = await filters.listed_of(request, opened)

    def made() -> Response:
        found = photographs.choices(opened.store, frame)
        errors = filters.errors_of(request, opened)
        if errors.run is None:
            targets = overview.target_columns(opened.store.catalog)
            found |= {"run": None, "runs": [], "folds": [], "targets": targets, "classes": []}
        else:
            found |= {
                "run": errors.run.name,
                "runs": sweeps.runs_with_oof(errors.run.parent),
                "folds": sweeps.fold_names(errors.run),
                "targets": sweeps.told_targets(errors.run),
                "classes": sweeps.told_class_names(errors.run),
            }
        return JsonText(json_value(found | {"target": errors.target}))

    return await run_in_threadpool(made)
