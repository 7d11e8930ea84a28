"""A store's URL apart from what opens it to us, and where its rows are kept."""

import os
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

from featurestore.errors import InputError, UsageError

SCHEMES = ("http://", "https://")
OBJECT_SCHEMES = ("s3://", "gs://", "az://")
TOKEN = "BIOMASS_TOKEN"  # environment variable
CACHE = "BIOMASS_CACHE"  # environment variable
# by scheme and host, of URLs that this process was given: a handle that travels has none
_tokens: dict[str, str] = {}


def default_root() -> Path:
    """BIOMASS_CACHE, or ~/.cache/biomass."""
    given = os.environ.get(CACHE)
    if given:
        return Path(given).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches, "biomass").expanduser()


def is_url(path: object) -> bool:
    """Whether it names a store by HTTP."""
    return isinstance(path, str) and path.lower().startswith(SCHEMES)


def is_object_url(path: object) -> bool:
    """Whether it names a store in object storage."""
    return isinstance(path, str) and path.lower().startswith(OBJECT_SCHEMES)


def is_elsewhere(path: object) -> bool:
    """Whether a store is named by a URL of either sort, not by a path on this machine."""
    return is_url(path) or is_object_url(path)


def as_kept(url: str) -> str:
    """A URL of either sort as it may be shown and kept: without a token, password or final `/`."""
    return object_url(url) if is_object_url(url) else without_token(url)


def object_url(url: str) -> str:
    """A store's URL in object storage, as it may be shown and kept.

    UsageError for one that holds more than names: credentials have no place in it.
    """
    scheme, _, rest = url.partition("://")
    place = rest.partition("?")[0].rpartition("@")[2].rstrip("/")
    shown = f"{scheme.lower()}://{place}"
    bucket, _, key = place.partition("/")
    # a message shows the place alone: what stands beside it may be a secret
    if set("?@#") & set(rest):
        raise UsageError(
            f"{shown}: behind a name, password or parameter in a URL; credentials are read from "
            "the environment"
        )
    folders = key.split("/") if key else ()
    if not bucket or {"", ".", ".."} & set(folders):
        raise UsageError(f"{shown}: no store's URL; it looks like s3://bucket/features.zarr")
    return shown


def published_url(url: str) -> str:
    """The URL that a store is published at; InputError for one where none can be."""
    if is_url(url):
        raise InputError(
            f"{without_token(url)}: a server is only read from; name a file, a folder or a URL of "
            "object storage"
        )
    shown = object_url(url)
    if not shown.endswith(".zarr"):
        raise InputError(
            f"{shown}: a store in object storage is a Zarr store, whose name ends in .zarr"
        )
    return shown


def without_token(url: str) -> str:
    """The URL as it may be shown and kept.

    A token in its query is remembered in this process alone.

    UsageError for what no store's URL has.
    """
    shown = url.partition("?")[0].rpartition("@")[2]
    refusal = UsageError(f"{shown}: no store's URL; it looks like http://host:port/v1/stores/name")
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError as err:  # a port that is no number, half a bracket
        raise refusal from err
    query = parse_qsl(parts.query)
    if "@" in parts.netloc:
        raise UsageError(
            f"{shown}: behind a name or password in a URL; give the server's token in {TOKEN}"
        )
    if not usable or any(name != "token" for name, _ in query):
        raise refusal
    path = quote(parts.path.rstrip("/"), safe="/%:@!$&'()*+,;=")
    scheme = parts.scheme.lower()
    host = parts.netloc.lower()
    shown = urlunsplit((scheme, host, path, "", ""))
    _tokens.update({origin(shown): token for _, token in query})
    return shown


def origin(url: str) -> str:
    """Scheme, host and port: whom a token is for."""
    return "{0.scheme}://{0.netloc}".format(urlsplit(url))


def forget_token(url: str) -> None:
    """Of a token that the URL was given with, once the server has refused it."""
    _tokens.pop(origin(url), None)


def token_for(url: str) -> str:
    """The token that this URL was given with, or else BIOMASS_TOKEN; empty if there is none."""
    given = _tokens.get(origin(url)) or os.environ.get(TOKEN, "")
    token = given.strip()
    if not (token.isascii() and token.isprintable()):  # http.client would refuse it, and tell it
        raise UsageError(
            f"{url}: the token holds what no header can; copy it again as the server prints it"
        )
    return token
