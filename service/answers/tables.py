"""A DataFrame as JSON or CSV, a part at a time: chosen rows and columns, and the next part."""

import csv
import json
import math
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np
import pandas as pd
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service.answers.kept import kept
from service.answers.parameters import number_of
from service.errors import ServiceError

LIMIT = 10_000
MOST_LIMIT = 100_000
# the last four: the first, full-width
RUN = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
# rows made into text at once: json holds the interpreter's lock meanwhile, and others wait
BLOCK = 500


def table_response(
    request: Request,
    frame: pd.DataFrame,
    format: str,
    state: str | None = None,
) -> Response:
    """Rows `?offset=` to `offset + limit` and `?columns=` of a table, streamed.

    frame : any; its index is left out. Missing and infinite numbers become null, or empty cells.
        Make it once (`computations.run`) and answer any part of it. format : `json` or `csv`.
    state : what all of it was made of, see service.answers.kept; None where it is not to be kept.

    ServiceError `not-found` for another format, `bad-request` for columns that are not there or a
    bad number.
    """
    if format not in ("json", "csv"):
        raise ServiceError(
            "not-found",
            f"no format {format[:20]!r}",
            "a table comes as .json or .csv",
        )
    names = _columns(request, frame)
    total = len(frame)
    offset = number_of(request, "offset", 0, total)
    limit = number_of(request, "limit", LIMIT, MOST_LIMIT, least=1)
    end = min(offset + limit, total)
    following = None
    if end < total:
        # all else that was asked for goes along, a filter say
        others = []
        for key, value in request.query_params.multi_items():
            if key not in ("offset", "limit"):
                others.append((key, value))
        query = urlencode([*others, ("offset", end), ("limit", limit)])
        following = f"{request.scope['path']}?{query}"
    part = frame.iloc[offset:end][names]
    if format == "csv":
        # relative to the address asked for: behind a proxy that may be below some prefix
        headers = {"Link": f'<?{urlsplit(following).query}>; rel="next"'} if following else {}
        response = _answer(request, part, _csv(part), headers, "text/csv; charset=utf-8")
        return kept(request, state, response)
    after = {"total": total, "offset": offset, "next": following}
    response = _answer(request, part, _json(part, after), {}, "application/json")
    return kept(request, state, response)


def _answer(
    request: Request,
    part: pd.DataFrame,
    texts: Iterator[str],
    headers: dict[str, str],
    media_type: str,
) -> Response:
    if len(part) <= BLOCK:  # at once: each step of a stream is a thread's turn
        return Response("".join(texts), headers=headers, media_type=media_type)
    body = [] if request.method == "HEAD" else texts
    return StreamingResponse(body, headers=headers, media_type=media_type)


def _columns(request: Request, frame: pd.DataFrame) -> list[str]:
    text = request.query_params.get("columns")
    names = list(frame.columns) if text is None else text.split(",")
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise ServiceError(
            "bad-request",
            f"no column {missing[0][:40]!r}",
            f"there are {', '.join(map(str, frame.columns))}",
        )
    return list(dict.fromkeys(names))


def _json(part: pd.DataFrame, after: dict[str, Any]) -> Iterator[str]:
    yield f'{{"columns": {json.dumps(list(map(str, part.columns)))}, "rows": ['
    for start in range(0, len(part), BLOCK):
        block = part.iloc[start : start + BLOCK]
        rows = json.dumps(list(_rows(block)), allow_nan=False)
        yield (", " if start else "") + rows[1:-1]  # without its own brackets
    yield f"], {json.dumps(after)[1:]}"


def _csv(part: pd.DataFrame) -> Iterator[str]:
    yield _csv_text([part.columns])
    for start in range(0, len(part), BLOCK):
        yield _csv_text(_rows(part.iloc[start : start + BLOCK]))


def _csv_text(rows: Any) -> str:
    lines: list[str] = []
    # the writer quotes what its line ends are made of: by \n alone a \r in a text would begin a
    # row, of a formula perhaps
    writer = csv.writer(SimpleNamespace(write=lines.append), lineterminator="\r\n")
    writer.writerows([_inert(cell) for cell in row] for row in rows)
    return "".join(line.removesuffix("\r\n") + "\n" for line in lines)


def _inert(cell: Any) -> Any:
    """A cell that no spreadsheet computes: a formula gets an apostrophe in front.

    A number stays as it is.

    Source: OWASP, CSV Injection, https://owasp.org/www-community/attacks/CSV_Injection
    """
    if isinstance(cell, str) and cell.startswith(RUN) and not NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell


def _rows(block: pd.DataFrame) -> Iterator[list[Any]]:
    columns = []
    for name in block.columns:
        columns.append([_cell(value) for value in block[name].tolist()])
    return map(list, zip(*columns, strict=True))


def _cell(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return _cell(value.item())
    return None if value is pd.NaT or value is pd.NA else str(value)
