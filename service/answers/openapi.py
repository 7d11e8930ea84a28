"""The OpenAPI 3.1 document, made of the routes: `@described` says what each answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from featurestore.about import DISTRIBUTION
from service.answers.parameters import library_of
from service.answers.tables import LIMIT, MOST_LIMIT
from service.connection.guard import OPEN, STATIC
from service.errors import STATUS
from service.library import Library

WHOLE = {"type": "integer", "minimum": 0}
VIEW = ("A view's name or position.", {"type": "string", "default": "0"})
TABLE_QUERY = {
    "offset": ("First row.", WHOLE | {"default": 0}),
    "limit": (
        f"Number of rows, capped at {MOST_LIMIT}.",
        {"type": "integer", "minimum": 1, "default": LIMIT},
    ),
    "columns": ("Names of columns, with commas.", {"type": "string"}),
}
PATH = {
    "s": "A store's name.",
    "image": "An image_id of the catalog, percent-encoded, or @N, its position.",
    "view": "A view's name or position.",
    "format": "json or csv.",
    "name": "An array's name.",
    "w": "A sweep's name.",
    "r": "Name of a run or a blend.",
    "w2": "Name of a sweep, the same or another.",
    "r2": "Name of a run or a blend of that sweep.",
    "key": "Key of a Zarr object.",
    "folder": "Hash of all files of the page, as the page names it.",
    "file": "Name of a file.",
}
ANYWHERE = ("unauthorized", "too-long", "internal", "busy")  # errors of all addresses
CONTENT = {
    "json": ["application/json"],
    "table": ["application/json", "text/csv"],
    "text": ["text/plain"],
    "html": ["text/html"],
    "file": ["text/javascript", "text/css", "image/svg+xml"],
    "png": ["image/png"],
    "jpeg": ["image/jpeg"],
    "bytes": ["application/octet-stream"],
}


@dataclass(frozen=True)
class Description:
    """What an endpoint answers: a key of CONTENT, its query parameters, its kinds of errors."""

    answer: str
    query: dict[str, tuple] = field(default_factory=dict)
    errors: Sequence[str] = ("not-found",)


def described(
    answer: str,
    errors: Sequence[str] = ("not-found", "store-damaged", "store-gone"),
    **query: tuple,
) -> Callable:
    """A decorator that describes an endpoint's answer, parameters and errors.

    For example `@described("json", view=("A view's name or position.", {"type": "string"}))`.

    answer : json, table (json or csv by `{format}`, its parameters are added), png, jpeg, html,
        text or bytes.
    errors : kinds beside ANYWHERE and `bad-request`, see service.errors.STATUS.
    query : text and JSON schema of each, and True behind them if it must be there.

    The first line of the endpoint's docstring becomes its summary.
    """

    def note(endpoint: Callable) -> Callable:
        extra = TABLE_QUERY if answer == "table" else {}
        endpoint.described = Description(
            answer,
            {**query, **extra},
            sorted({*errors, "bad-request"}),
        )
        return endpoint

    return note


@described("json", ())
def document(request: Request) -> Response:
    """This document."""
    return JSONResponse(openapi(request.app.routes, library_of(request)))


def openapi(routes: Sequence[BaseRoute], library: Library) -> dict[str, Any]:
    """The document of these routes; names of stores and sweeps stand in it as they are served."""
    try:
        ours = version(DISTRIBUTION)
    except PackageNotFoundError:  # run from a checkout that is not installed
        ours = "0"
    described_routes = [route for route in routes if isinstance(route, Route)]
    paths = {}
    for route in described_routes:
        path = route.path.replace(":path}", "}")  # Starlette's mark of a name that may hold slashes
        paths[path] = {"get": _operation(route, library)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "biomass",
            "version": ours,
            "description": "Stores of tokens and sweeps over them, read-only. Every "
            "address answers HEAD too; docs/service.md says more.",
        },
        "paths": paths,
        "security": [{"token": []}],
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": SCHEMAS,
        },
    }


def _operation(route: Route, library: Library) -> dict[str, Any]:
    what = getattr(route.endpoint, "described", Description("json"))
    # the first paragraph is the summary; wrapped lines of it are one
    doc = (route.endpoint.__doc__ or route.name).strip()
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": PATH.get(name, name),
            "schema": _path_schema(name, library),
        }
        for name in route.param_convertors
    ]
    parameters += [
        {
            "name": name,
            "in": "query",
            "required": bool(required),
            "description": text,
            "schema": schema,
        }
        for name, (text, schema, *required) in what.query.items()
    ]
    file_name = route.endpoint.__module__.rpartition(".")[2]
    return {
        "operationId": f"{file_name}.{route.endpoint.__name__}",
        "summary": " ".join(doc.partition("\n\n")[0].split()),
        "description": doc,
        "parameters": parameters,
        "responses": _responses(what),
    } | ({"security": []} if route.path.startswith((*OPEN, STATIC)) else {})


def _path_schema(name: str, library: Library) -> dict[str, Any]:
    known = {
        "s": list(library.stores),
        "w": list(library.sweep_folders),
        "format": ["json", "csv"],
    }.get(name)
    examples = known or {
        "image": ["@0"],
        "view": ["0"],
        "name": ["seal"],
        "key": ["zarr.json"],
    }.get(name)
    return {"type": "string", "minLength": 1} | ({"examples": examples} if examples else {})


def _responses(what: Description) -> dict[str, Any]:
    schemas = {"application/json": "Table"} if what.answer == "table" else {}
    content = {}
    for kind in CONTENT[what.answer]:
        schema = {"$ref": f"#/components/schemas/{schemas[kind]}"} if kind in schemas else {}
        content[kind] = {"schema": schema}
    found: dict[str, Any] = {"200": {"description": "What was asked for.", "content": content}}
    if what.answer == "bytes":
        found["206"] = {
            "description": "The ranges asked for.",
            "content": {**content, "multipart/byteranges": {}},
        }
        found["304"] = {"description": "The bytes are those of If-None-Match."}
    of_bytes = ["range"] if what.answer == "bytes" else []
    for kind in (*ANYWHERE, *what.errors, *of_bytes):
        error = {"$ref": "#/components/schemas/Error"}
        # several kinds share a status, and a document has one entry for it
        status = found.setdefault(
            str(STATUS[kind]),
            {"description": kind, "content": {"application/json": {"schema": error}}},
        )
        if kind not in status["description"]:
            status["description"] += f" or {kind}"
    return found


SCHEMAS = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["kind", "message", "hint"],
                "properties": {
                    "kind": {"type": "string", "enum": list(STATUS)},
                    "message": {"type": "string"},
                    "hint": {"type": "string"},
                },
            }
        },
    },
    "Table": {
        "type": "object",
        "required": ["columns", "rows", "total", "offset", "next"],
        "properties": {
            "columns": {"type": "array", "items": {"type": "string"}},
            "rows": {"type": "array", "items": {"type": "array"}},
            "total": WHOLE,
            "offset": WHOLE,
            "next": {"type": ["string", "null"]},
        },
    },
}
