"""What a request names: a store, image, view, numbers.

Names are looked up in catalogs, never joined to a path.
"""

import re
from urllib.parse import unquote

from starlette.requests import Request

from featurestore.errors import InputError, StoreDamaged
from featurestore.store import FeatureStore
from service.errors import ServiceError
from service.library import Library
from service.served import Opened

EVERY = (
    "Every so many of the sealed photographs alone, the same of each table.",
    {"type": "integer", "minimum": 1, "default": 1},
)
MOST_IMAGES = 64
IMAGES = (
    f"An image_id; given up to {MOST_IMAGES} times.",
    {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MOST_IMAGES},
    True,
)
POSITION = re.compile(r"@(\d{1,9})", re.ASCII)


def library_of(request: Request) -> Library:
    return request.app.state.library


def name_of(request: Request, parameter: str) -> str:
    """A part of the address as text.

    Addresses are matched percent-encoded, so that a name may hold a slash.
    """
    try:
        return unquote(request.path_params[parameter], errors="strict")
    except UnicodeDecodeError as err:
        raise ServiceError(
            "not-found",
            f"{parameter}: not UTF-8 behind the percent signs",
            "encode names as UTF-8",
        ) from err


def images_of(request: Request) -> list[str]:
    """The names that IMAGES tells of; ServiceError `bad-request` for none or too many."""
    names = request.query_params.getlist("image")
    if not 1 <= len(names) <= MOST_IMAGES:
        raise ServiceError(
            "bad-request",
            f"{len(names)} photographs, 1 to {MOST_IMAGES} were expected",
            "e.g. ?image=ID1&image=ID2",
        )
    return names


def opened_of(request: Request, name: str | None = None) -> Opened:
    """The store `{s}`, or of a name, the same for all of a request; its generation goes into the
    header.

    ServiceError `not-found`, `store-gone`, `store-damaged`. It asks the disk: call it from a plain
    `def` endpoint, or from an `async def` one by `await run_in_threadpool(opened_of, request)`.
    """
    if not hasattr(request.state, "opened"):
        name = name_of(request, "s") if name is None else name
        stores = library_of(request).stores
        if name not in stores:
            raise ServiceError(
                "not-found",
                f"no store {name!r}",
                f"/v1/stores lists them: {', '.join(stores)}",
            )
        request.state.opened = stores[name].now()
    return request.state.opened


def image_of(request: Request, opened: Opened) -> int:
    """Position of the image `{image}`, an id or `@N`, sealed or not; else `not-found`."""
    raw = request.path_params["image"]
    text = name_of(request, "image")
    position = POSITION.fullmatch(text)
    store = opened.store
    # an id that looks like a position comes as %40N
    if position and (raw[0] == "@" or text not in store):
        if int(position[1]) >= store.n_images:
            raise ServiceError(
                "not-found",
                f"no image {text}",
                f"{opened.name} has @0 to @{store.n_images - 1}",
            )
        return int(position[1])
    try:
        return store.index(text)
    except InputError as err:
        raise ServiceError(
            "not-found",
            str(err).split(": ", 1)[1],
            "ids are in catalog.json; @N asks by position",
        ) from err


def sealed_image_of(request: Request, opened: Opened) -> int:
    """As `image_of`, of an image whose tokens are there.

    ServiceError `not-sealed` or `store-damaged` if they are not.
    """
    image = image_of(request, opened)
    require_sealed(opened.store, image)
    return image


def require_sealed(store: FeatureStore, image: int) -> None:
    """ServiceError unless the image's tokens are there and its seal matches.

    `not-sealed` if it is not built yet or was skipped, else `store-damaged`.
    """
    try:
        store.require(image)
    except StoreDamaged as err:
        raise ServiceError(
            "store-damaged",
            f"the seal of {_named(store, image)} does not match its catalog row, thumbnail and "
            "checksums",
            "`biomass store verify` lists all such images",
        ) from err
    except InputError as err:
        raise ServiceError(
            "not-sealed",
            f"{_named(store, image)} is not built yet or was skipped",
            "catalog.json says which images are sealed; ask again once the build is done",
        ) from err


def _named(store: FeatureStore, image: int) -> str:
    """An image for messages; a place that no image has taken yet has no id."""
    name = ""
    if image < store.n_images:
        (name,) = store.catalog_rows(slice(image, image + 1))["image_id"]
    return f"image {image} ({name})"


def view_of(request: Request, opened: Opened) -> int:
    """Position of the view `{view}`, or `?view=`, by name or position; the first by default."""
    if "view" in request.path_params:
        name = name_of(request, "view")
    else:
        name = request.query_params.get("view", "0")
    names = opened.store.view_names
    if name in names:
        return names.index(name)
    if re.fullmatch(r"\d{1,4}", name, re.ASCII) and int(name) < len(names):
        return int(name)
    raise ServiceError("not-found", f"no view {name!r}", f"{opened.name} has {', '.join(names)}")


def number_of(request: Request, parameter: str, default: int, most: int, least: int = 0) -> int:
    """`?parameter=` as an integer from `least`, capped at `most`; else `bad-request`."""
    text = request.query_params.get(parameter)
    if text is None:
        return default
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII) or int(text) < least:
        raise ServiceError(
            "bad-request",
            f"{parameter}={text[:40]!r}: a whole number, {least} or more, was expected",
        )
    return min(int(text), most)


def every_of(request: Request, opened: Opened) -> int:
    """`?every=`: of how many sealed photographs one is told."""
    return number_of(request, "every", 1, max(1, opened.store.n_images), least=1)


def choice_of(request: Request, parameter: str, choices: tuple[str, ...]) -> str:
    """`?parameter=` as one of the choices, the first by default; else `bad-request`."""
    text = request.query_params.get(parameter, choices[0])
    if text not in choices:
        raise ServiceError(
            "bad-request", f"{parameter}={text[:40]!r}: one of {', '.join(choices)} was expected"
        )
    return text
