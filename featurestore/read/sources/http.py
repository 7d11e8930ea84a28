"""A store that a server offers. What it answers is written down in docs/service.md."""

import json
import reprlib

import numpy as np

from featurestore.errors import InputError, UsageError
from featurestore.format.layout import MOST_IMAGES
from featurestore.format.spec import Array, StoreSpec
from featurestore.read.source import Files
from featurestore.read.sources.http_client import Client, the_only_store


class Http:
    """An Origin: a store at a server's URL, which may grow while it is read."""

    manner = "fetched from the server, and kept in a cache"
    where = "on the server's machine; "
    grows = True

    def __init__(self, url: str) -> None:
        self.url = the_only_store(url)
        self._client: Client | None = None

    def __reduce__(self) -> tuple:
        return Http, (self.url,)

    def begin(self) -> tuple[StoreSpec, int]:
        """Spec and room of the store, as the server tells them."""
        self._client = Client(self.url)
        about = self._client.json()
        spec = about.get("spec")
        n = about.get("n_room")
        is_room = type(n) is int and 1 <= n <= MOST_IMAGES
        if not isinstance(spec, dict | str) or not is_room:
            found = f"spec {type(spec).__name__}, n_room {reprlib.repr(n)}"
            raise InputError(
                f"{self.url}: the answer tells of no store ({found}); is this URL a store's, as "
                "`biomass store serve` prints it?"
            )
        self._client.check_generation(str(about.get("generation", "")))
        text = spec if isinstance(spec, str) else json.dumps(spec)
        return StoreSpec.from_json(text, self.url), n

    def seals(self, n: int) -> np.ndarray:
        seal_N = self._client.bytes("/arrays/seal", 4 * n).view("<u4")
        # a reader is handed this very array: it may write into it as little as into a map
        seal_N.flags.writeable = False
        return seal_N

    def array(self, array: Array, span: tuple[int, int]) -> np.ndarray:
        whole = span == (0, array.n_bytes)
        return self._client.bytes(f"/arrays/{array.name}", array.n_bytes, None if whole else span)

    def row(self, image: int, view: int, array: Array) -> np.ndarray:
        return self._client.bytes(f"/rows/@{image}/{view}?tokens=patches", array.row_bytes)

    def check_same(self) -> None:
        """Each answer tells which files it comes from; the client compares them."""

    def files(self) -> Files:
        raise UsageError(
            f"{self.url}: verify reads files where they lie; run it on the server's machine. (Rows "
            "that are fetched are compared with their checksums.)"
        )

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
