"""The seam between reading and storage: what a source of bytes answers.

A new source (object storage, say) is a class with these members and a line in
`featurestore.read.open`; nothing above it changes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from featurestore.format.layout import Layout

Row = tuple[int, int]
"""Position of an image, and of a view."""


class Files(Protocol):
    """A store's own files, each byte as it is now."""

    layout: Layout
    """Where everything lies in them."""
    piece_bytes: int
    """How much is best read at once."""
    n_readers: int
    """By how many threads."""

    def read_into(self, path: Path, buffer: np.ndarray, offset: int) -> None:
        """Fill a buffer from one of the layout's files; StoreDamaged if it is missing or cut."""

    def size(self, path: Path) -> int:
        """How long one of them is."""

    def metadata_crc(self) -> int:
        """CRC-32C of what is neither an array's bytes nor a shard's index."""

    def close(self) -> None:
        """Let go of them."""


class Source(Protocol):
    """The bytes of one store, sealed or not; images and views by position.

    A source pickles as what opens it again.
    """

    layout: Layout
    """The store's spec, and the shape of each array."""
    path: Path | str
    """The store's name in messages."""
    address: str
    """What opens the store again, from any folder."""
    folder: str
    """Where the weights of the store's backbone are kept."""
    checks_rows: bool
    """Whether rows of patches have been compared with their checksums when they are handed out."""
    n_begun: int
    """How often the source began. Arrays are fetched anew then, in a forked child say, and what was
    compared before says nothing of them."""
    manner: str
    """How rows of patches are read, in a few words for people."""

    def array(self, name: str) -> np.ndarray:
        """Any array but the patches, whole and read-only."""

    def patches(self, image: int, views: Sequence[int]) -> np.ndarray:
        """(V, T, P, D) float16 of an image; only the views that are named need to be there."""

    def patches_crc(self, image: int, view: int) -> int:
        """The CRC-32C that lies beside a row of patches. Asked only where the layout has one."""

    def will_need(self, rows: Sequence[Row]) -> int:
        """Begin to fetch rows of patches; how many of them were not at hand."""

    def read_into(self, rows: Sequence[Row], out: np.ndarray) -> None:
        """Fill `out`, C-contiguous (B, T, P, D) float16, with rows of patches."""

    def place(self, image: int, view: int) -> str:
        """Where a row lies, for messages."""

    def files(self) -> Files:
        """The store's own files, to verify them; to be closed."""

    def refresh(self) -> None:
        """Look again at what a writer may have changed."""

    def distrust(self) -> str:
        """Fetch every array anew when it is next used, because one is not what was committed.

        Returns what a reader should know about that, to be added to the message.
        """

    def close(self) -> None:
        """Let go of files and connections. Arrays that were handed out stay as they are."""
