"""Addresses of predictions of new photographs: the table, a photograph's row and pictures."""

from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pandas as pd
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from featurestore.disk.json_values import json_value
from featurestore.errors import BiomassError
from service.answers import computations
from service.answers.kept import tagged_by
from service.answers.openapi import described
from service.answers.parameters import IMAGES, images_of, library_of, name_of
from service.answers.tables import table_response
from service.errors import ServiceError
from service.explore import predicted, sweeps
from service.json_text import JsonText

ERRORS = ("not-found",)
TEXT = {"type": "string"}
ORDER = ("A column, or doubt; a minus before it turns it round.", TEXT)
TARGET = ("Whose doubt orders; the weightiest without.", TEXT)


def routes() -> list[Route]:
    address = "/v1/predictions"
    image = f"{address}/images/{{image}}"
    return [
        Route(address, about),
        Route(f"{address}/table.{{format}}", table),
        Route(f"{address}/thumbs.json", thumbs),
        Route(image, card),
        Route(f"{image}/thumb.jpg", thumb),
        Route(f"{image}/photograph.jpg", photograph),
        Route(f"{image}/explained.jpg", explained),
    ]


@described("json", errors=ERRORS)
async def about(request: Request) -> Response:
    """What is predicted of how many photographs, and what lies beside the table."""
    frame = await _table_of(request)
    library = library_of(request)
    found = {
        "name": library.predictions.name,
        "n": len(frame),
        "targets": predicted.targets(frame),
        "target": await run_in_threadpool(_target_of, request, frame),
        "has_photographs": library.data is not None,
        "has_explained": library.explain is not None,
    }
    return JsonText(json_value(found))


@described("table", errors=ERRORS, order=ORDER, target=TARGET)
async def table(request: Request) -> Response:
    """The table that `biomass predict` wrote, in an order."""
    frame = await _ordered_of(request)
    return table_response(request, frame, name_of(request, "format"))


@described("json", errors=ERRORS, order=ORDER, target=TARGET)
async def card(request: Request) -> Response:
    """A photograph's row, its place in the order, and who comes before and after."""
    frame = await _ordered_of(request)
    return JsonText(json_value(predicted.beside(frame, name_of(request, "image"))))


@described("json", errors=ERRORS, image=IMAGES)
async def thumbs(request: Request) -> Response:
    """Several photographs in small, each a JPEG in base64; null where there is none."""
    frame = await _table_of(request)
    names = images_of(request)
    data, paths = await _photographs_of(request)
    # only of what is predicted: the folder of --data may hold others
    known = frame["image_id"][frame["image_id"].isin(names)].tolist()
    max_pixels = library_of(request).max_pixels

    def made() -> Response:
        files = {}
        for name in known:
            with suppress(BiomassError):
                files[name] = predicted.photograph_file(name, paths, data)

        def answer() -> Response:
            found = predicted.thumbs_base64(files, max_pixels)
            return JsonText({"thumbs": [found.get(name) for name in names]})

        return tagged_by(request, _key([max_pixels, names], files.values()), answer)

    return await run_in_threadpool(made)


@described("jpeg", errors=ERRORS)
async def thumb(request: Request) -> Response:
    """The photograph in small."""
    return await _photograph_of(request, predicted.THUMB_PX)


@described("jpeg", errors=ERRORS)
async def photograph(request: Request) -> Response:
    """The photograph, from below the folder of --data."""
    return await _photograph_of(request, predicted.MOST_PX)


@described("jpeg", errors=ERRORS)
async def explained(request: Request) -> Response:
    """The picture that --explain drew of it."""
    frame = await _table_of(request)
    folder = library_of(request).explain
    if folder is None:
        raise ServiceError("not-found", "no pictures of --explain are served", "add --explain DIR")
    image = _image_of(request, frame)
    body = await run_in_threadpool(predicted.explained_jpeg, folder, image, frame)
    return Response(body, media_type="image/jpeg")


async def _table_of(request: Request) -> pd.DataFrame:
    """The table, read again when its file has changed."""
    path = library_of(request).predictions
    if path is None:
        raise ServiceError(
            "not-found",
            "no predictions are served",
            "start with --predictions FILE",
        )
    # by its time and size: a prediction that is written anew is another key
    key = ("predictions", sweeps.stamp(path))
    return await computations.run(request, key, lambda: predicted.read(path))


async def _ordered_of(request: Request) -> pd.DataFrame:
    frame = await _table_of(request)

    def made() -> pd.DataFrame:
        target = request.query_params.get("target") or _target_of(request, frame)
        return predicted.ordered(frame, request.query_params.get("order"), target)

    return await run_in_threadpool(made)


def _target_of(request: Request, frame: pd.DataFrame) -> str:
    # a table does not tell weights; the first sweep stands for the one that was predicted with
    folders = library_of(request).sweep_folders.values()
    folder = next(iter(folders), None)
    weightiest = sweeps.targets_of_sweep(folder).foremost.name if folder else None
    return predicted.first_target(frame, weightiest)


def _image_of(request: Request, frame: pd.DataFrame) -> str:
    image = name_of(request, "image")
    if not (frame["image_id"] == image).any():
        raise ServiceError("not-found", f"no photograph {image[:40]!r} is predicted")
    return image


async def _photograph_of(request: Request, most: int) -> Response:
    frame = await _table_of(request)
    # only of what is predicted: the folder of --data may hold others
    image = _image_of(request, frame)
    data, paths = await _photographs_of(request)
    max_pixels = library_of(request).max_pixels

    def made() -> Response:
        file = predicted.photograph_file(image, paths, data)

        def picture() -> Response:
            jpeg = predicted.photograph_jpeg(file, max_pixels, most)
            return Response(jpeg, media_type="image/jpeg")

        return tagged_by(request, _key([max_pixels, most], [file]), picture)

    return await run_in_threadpool(made)


def _key(settings: list, files: Iterable[Path]) -> bytes:
    """What pictures are made of: photographs by their time and size, as decoding one takes ten
    times as long as asking for these."""
    return repr([*settings, *map(sweeps.stamp, files)]).encode()


async def _photographs_of(request: Request) -> tuple[Path, dict[str, str]]:
    """The folder of --data, and where photographs lie below it."""
    data = library_of(request).data
    if data is None:
        raise ServiceError("not-found", "no photographs are served", "add --data DIR")
    # files that come later are found once a table of them changes
    stamps = [sweeps.stamp(data / name) for name in predicted.TABLES]
    find = partial(predicted.photograph_paths, data)
    return data, await computations.run(request, ("paths", *stamps), find)
