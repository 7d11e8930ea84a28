"""GETs of one store that a server offers, bounded and tried again where that helps.

Every error is one of the family.

What the answers mean is `sources.http`'s. Of the standard library: httpx brought 290 MB/s of a core
for rows of 9.2 MB, this 1.2 GB/s and more (once, 2 cores): h11 parses in Python, under the lock
that training wants.
"""

import json
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from featurestore.disk.urls import TOKEN, forget_token, origin, token_for, without_token
from featurestore.errors import (
    BiomassError,
    InputError,
    MismatchError,
    StoreDamaged,
    UsageError,
    list_some,
)

# before each further try: a server started again must end no training
WAITS_S = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 30.0)
MOST_WAIT_S = 30.0  # whatever Retry-After says
CONNECT_S = 10.0
READ_S = 30.0
# bytes a second that an answer must come at, after READ_S: one that trickles is no answer
LEAST_PACE = 20_000
MOST_JSON = 16 << 20  # bytes of an answer that is parsed whole
PIECE = 256 << 10  # bytes that are read at once


class TryAgain(Exception):
    """An answer that did not come whole; `after_s` is what the server asked for."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


class Client:
    """A store's address, with one connection for each request under way.

    Safe to use from several threads, not across a fork.
    """

    def __init__(self, url: str) -> None:
        self.url = without_token(url)
        self.generation = ""
        self._reached = False
        token = token_for(self.url)
        # http.client decodes nothing, and tokens would hardly compress
        self._headers = {"Accept-Encoding": "identity"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._idle: list[HTTPConnection] = []
        self._closed = False
        self._lock = threading.Lock()

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        with self._lock:
            while self._idle:
                self._idle.pop().close()

    def json(self, path: str = "") -> dict[str, Any]:
        """An answer that is a JSON object."""
        try:
            text = self._retried(path, {}, partial(_read_text, most_bytes=MOST_JSON))
            found = json.loads(text)
        except (ValueError, RecursionError) as err:
            raise InputError(
                f"{self.url}{path}: the answer is no JSON; is this URL a store's, as `biomass "
                "store serve` prints it?"
            ) from err
        if not isinstance(found, dict):
            raise InputError(
                f"{self.url}{path}: the answer is no JSON object; is this URL a store's?"
            )
        return found

    def bytes(self, path: str, n_bytes: int, span: tuple[int, int] | None = None) -> np.ndarray:
        """(n,) uint8: an answer of n_bytes, or a span of it.

        StoreDamaged for another length, before room is made for it.
        """
        first, end = span or (0, n_bytes)
        headers = {"Range": f"bytes={first}-{end - 1}"} if span else {}
        return self._retried(
            path, headers, lambda response, where: _read_exactly(response, where, end - first)
        )

    def _retried(self, path: str, headers: dict[str, str], read: Any) -> Any:
        waits = iter(WAITS_S)
        while True:
            try:
                return self._once(path, headers, read)
            except TryAgain as err:
                wait_s = next(waits, None)
                # at the first request the address is more likely to be wrong
                if wait_s is None or not self._reached:
                    raise InputError(f"{self.url}: {err}") from err
                time.sleep(min(max(wait_s, err.after_s), MOST_WAIT_S))

    def _once(self, path: str, headers: dict[str, str], read: Any) -> Any:
        response = connection = None
        try:
            connection = self._connection()
            connection.request(
                "GET", urlsplit(self.url).path + path, headers=self._headers | headers
            )
            response = connection.getresponse()
            self._reached = True  # from here on failures may pass, and are tried again
            if response.status not in (200, 206):
                raise self._error(response, path)
            self.check_generation(response.headers.get("X-Store-Generation", ""))
            whole = read(response, f"{self.url}{path}")
            self._give_back(connection, response)
            connection = None
            return whole
        except (OSError, HTTPException, UnicodeError) as err:
            # the server may have gone, and come back: idle ones are all as old as this one
            self._close_idle()
            why = _printable(str(err)).strip() or type(err).__name__
            if response is None:
                raise TryAgain(
                    f"no answer ({why}); is `biomass store serve` running there, and the address "
                    "right?"
                ) from err
            raise TryAgain(
                f"an answer was cut ({why}); is the server being stopped, or the network failing?"
            ) from err
        finally:
            if connection is not None:
                connection.close()

    def _connection(self) -> HTTPConnection:
        with self._lock:
            if self._closed:
                raise UsageError(f"{self.url}: this handle was closed; open the store again")
            if self._idle:
                return self._idle.pop()
        parts = urlsplit(self.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(parts.hostname, parts.port, timeout=CONNECT_S)
        connection.connect()
        # one limit to find the server, another for each read of its answer
        connection.sock.settimeout(READ_S)
        return connection

    def _give_back(self, connection: HTTPConnection, response: HTTPResponse) -> None:
        if response.length == 0:
            # nothing; http.client counts an answer as read only when somebody asked beyond its end
            response.read()
        with self._lock:
            if response.isclosed() and not response.will_close and not self._closed:
                self._idle.append(connection)
            else:
                connection.close()

    def check_generation(self, generation: str) -> None:
        """MismatchError if an answer comes from other files than the first one did."""
        if generation and self.generation and generation != self.generation:
            raise MismatchError(f"{self.url}: the store was replaced, open it again")
        self.generation = generation or self.generation

    def _error(self, response: HTTPResponse, path: str) -> Exception:
        status = response.status
        where = f"{self.url}{path}"
        kind, said = _said(response, where)
        if status == 503:
            after = response.headers.get("Retry-After", "")  # a proxy may send a date instead
            after_s = float(after) if after.isdecimal() else 0.0
            return TryAgain(f"the server is not ready (503): {said}", after_s)
        if status == 401:
            # else the right one in the environment would not be asked next time
            forget_token(self.url)
            why = (
                "another token than the one given"
                if "Authorization" in self._headers
                else "its token"
            )
            return InputError(
                f"{self.url}: the server wants {why} (401): set {TOKEN}, or add ?token=... to the "
                "URL; `biomass store serve` prints it where it runs"
            )
        if status == 409:
            return InputError(
                f"{where}: not built yet, or un-sealed since ({said}); store.refresh() looks again"
            )
        if 300 <= status < 400:
            return InputError(
                f"{where}: answered by a redirection ({status}), which is not followed; give the "
                "URL it leads to"
            )
        if status == 404:
            return InputError(
                f"{where}: not found (404): {said}; `curl` of .../v1/stores lists what is served"
            )
        if kind == "store-damaged":
            return StoreDamaged(f"{where}: {said}; see to the store on the server's machine")
        return InputError(f"{where}: refused ({status}): {said}")


def _said(response: HTTPResponse, where: str) -> tuple[str, str]:
    """Kind and message of an error's body."""
    try:
        error = json.loads(_read_text(response, where, 1 << 16))["error"]
        return str(error["kind"]), _printable(str(error["message"])[:500])
    except (ValueError, KeyError, TypeError, RecursionError, BiomassError, TryAgain):
        return "", "no reason was given"


def _printable(text: str) -> str:
    """Without what would move a terminal's cursor: it comes from a server."""
    return "".join(c if c.isprintable() else " " for c in text)


def _read_text(response: HTTPResponse, where: str, most_bytes: int) -> bytes:
    whole = bytearray()
    for piece in _pieces(response, most_bytes):
        whole += piece
        if len(whole) > most_bytes:
            raise InputError(
                f"{where}: more than {most_bytes} bytes of JSON; is this URL a store's?"
            )
    return bytes(whole)


def _read_exactly(response: HTTPResponse, where: str, n_bytes: int) -> np.ndarray:
    """Fill a buffer with the body; TryAgain if it is cut."""
    told = response.headers.get("Content-Length")
    wrong = StoreDamaged(
        f"{where}: {told or 'more'} bytes, {n_bytes} expected from the store's spec; open the "
        "store again, and see to it on the server's machine"
    )
    if told not in (None, str(n_bytes)):
        raise wrong
    whole = np.empty(n_bytes, np.uint8)
    at = 0
    for piece in _pieces(response, n_bytes):
        if at + len(piece) > n_bytes:
            raise wrong
        whole[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
        at += len(piece)
    if at < n_bytes:
        raise TryAgain(f"an answer was cut (received {at} bytes, expected {n_bytes})")
    return whole


def _pieces(response: HTTPResponse, n_bytes: int) -> Iterator[bytes]:
    """The body as it comes, a piece for each read of the socket; TryAgain if too slow."""
    until = time.monotonic() + READ_S + n_bytes / LEAST_PACE
    while piece := response.read1(PIECE):
        yield piece
        if time.monotonic() > until:
            raise TryAgain(f"an answer came at less than {LEAST_PACE} bytes a second")


def the_only_store(url: str) -> str:
    """The URL of the one store a server offers, given the server's own; others as they are.

    InputError lists several.
    """
    shown = without_token(url)
    parts = urlsplit(shown)
    if parts.path not in ("", "/v1", "/v1/stores"):
        return shown
    server = Client(f"{origin(shown)}/v1/stores")
    try:
        stores = server.json().get("stores")
    finally:
        server.close()
    names = [
        each["name"]
        for each in stores or []
        if isinstance(each, dict) and isinstance(each.get("name"), str)
    ]
    urls = [f"{server.url}/{quote(name, safe='')}" for name in names]
    if len(urls) != 1:
        raise InputError(
            f"{shown}: {len(urls)} stores are served there, give the URL of one:{list_some(urls)}"
        )
    return urls[0]
