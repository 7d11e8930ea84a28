"""A store in object storage under its name: what is sent of it comes through its cache."""

import hashlib
import threading
import time
from dataclasses import dataclass

import numpy as np

from featurestore.disk.durable import crc32c
from featurestore.errors import BiomassError, MismatchError
from featurestore.store import FeatureStore
from service.errors import ServiceError
from service.served import Opened, Served

LOOK_S = 5.0  # between two looks at whether the store was replaced


@dataclass(frozen=True)
class OpenedElsewhere(Opened):
    """Its pieces are memory: the file of a cache may be emptied while it is sent, a map stays."""

    is_virtual = True

    def row_part(self, name: str, image: int, view: int) -> memoryview:
        if name == "patches":
            return _bytes(self.store.source.patches(image, (view,))[view])
        return _bytes(self.store.array(name)[image, view])

    def array_part(self, name: str, start: int, n_bytes: int) -> memoryview:
        return _bytes(self.store.array(name))[start : start + n_bytes]

    def etag_of(self, name: str) -> str:
        return f'"{self.state}-{name.replace("/", "-")}"'


class ServedElsewhere(Served):
    """A published store does not change; one that was replaced is opened anew."""

    def __init__(self, name: str, url: str) -> None:
        super().__init__(name, url)
        self._looked = 0.0
        self._checking = threading.Lock()

    def now(self) -> Opened:
        """The store; ServiceError `store-gone` if it cannot be opened."""
        self._check_same()
        with self._lock:
            if self._opened is None:
                self._opened = self._open_again()
            return self._opened

    def _check_same(self) -> None:
        """Let go of a store that was replaced.

        One request asks, which takes minutes while the bucket is out of reach; others go on.
        """
        opened = self._opened
        is_due = opened is not None and time.monotonic() - self._looked > LOOK_S
        if not is_due or not self._checking.acquire(blocking=False):
            return
        try:
            opened.store.refresh()
        except MismatchError:
            with self._lock:
                if self._opened is opened:
                    self._opened = None
        except BiomassError:  # out of reach just now: what is in the cache holds
            pass
        finally:
            self._looked = time.monotonic()
            self._checking.release()

    def _open_again(self) -> Opened:
        try:
            return self._open()
        except BiomassError as err:
            raise ServiceError(
                "store-gone",
                f"store {self.name!r} cannot be opened now",
                "the server's log says why; ask again once it is back",
            ) from err

    def _open(self) -> Opened:
        store = FeatureStore.open(self.path)
        self._looked = time.monotonic()
        what = f"{store.spec.fingerprint};{crc32c(store.array('seal'))}"
        generation = hashlib.sha256(what.encode()).hexdigest()[:16]
        return OpenedElsewhere(self.name, store, generation, generation)


def _bytes(values: np.ndarray) -> memoryview:
    return memoryview(np.ascontiguousarray(values).reshape(-1).view(np.uint8))
