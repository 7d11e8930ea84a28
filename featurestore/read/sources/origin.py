"""What fetching needs to know of the place where a store lies."""

from typing import Protocol

import numpy as np

from featurestore.format.spec import Array, StoreSpec
from featurestore.read.source import Files


class Origin(Protocol):
    """Where a store lies. It pickles as its address."""

    url: str
    """What opens the store again, without what must be kept secret."""
    manner: str
    """How rows are read, in a few words for people."""
    where: str
    """Where a user must go to see to the bytes themselves, with `; ` behind it; or nothing."""
    grows: bool
    """Whether images may be sealed or added while the store is read."""

    def begin(self) -> tuple[StoreSpec, int]:
        """Connect; spec and room of the store as it is now. Anew in a forked child."""

    def seals(self, n: int) -> np.ndarray:
        """(n,) uint32, as they are now."""

    def array(self, array: Array, span: tuple[int, int]) -> np.ndarray:
        """(end - start,) uint8 of an array other than patches."""

    def row(self, image: int, view: int, array: Array) -> np.ndarray:
        """(row_bytes,) uint8 of patches."""

    def check_same(self) -> None:
        """MismatchError if the store was replaced since it was opened."""

    def files(self) -> Files:
        """The store's own files, to be verified; UsageError where they are out of reach."""

    def close(self) -> None:
        """Let go of connections."""
