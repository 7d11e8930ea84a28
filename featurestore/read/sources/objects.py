"""A store in object storage: a Zarr store's own files, as objects below one URL."""

from pathlib import Path

import numpy as np

from featurestore.disk.durable import crc32c
from featurestore.disk.threads import Pool
from featurestore.errors import BiomassError, InputError, MismatchError, StoreDamaged
from featurestore.format.layout import Layout
from featurestore.format.spec import ARCHIVE_FORMAT, Array, StoreSpec
from featurestore.format.zarr import laid_out, parse_metadata
from featurestore.read.sources.object_client import NotThere, ObjectClient

ROOT = "zarr.json"
N_THREADS = 16  # for metadata, some twenty small objects
SEALS = "seal/c/0"  # the array is in one object


class Objects:
    """An Origin: a published store, which is replaced as a whole or not at all.

    url : e.g. s3://bucket/features.zarr
    """

    manner = "fetched from object storage, and kept in a cache"
    where = ""
    grows = False

    def __init__(self, url: str) -> None:
        self._client = ObjectClient(url)
        self.url = self._client.url
        self._layout: Layout | None = None

    def __reduce__(self) -> tuple:
        return Objects, (self.url,)

    def begin(self) -> tuple[StoreSpec, int]:
        """Read all metadata. A forked child goes on with its parent's: it can ask for nothing."""
        if self._layout is None:
            try:
                root, _ = self._client.get(ROOT)
                self._metadata = {ROOT: root}
                # of the object that vouches for all others, and is put after them
                self._mark = self._client.facts(SEALS)
            except NotThere as err:
                raise InputError(
                    f"{self.url}: no store there, or not all of one yet ({err}); "
                    f"`biomass store convert STORE {self.url}` puts one there"
                ) from err
            self._read_metadata()
        return self._layout.spec, self._layout.n

    def _read_metadata(self) -> None:
        root = parse_metadata(self._metadata[ROOT], Path(self.url, ROOT), "group")
        attributes = root.get("attributes", {})
        if attributes.get("format") == ARCHIVE_FORMAT:
            raise InputError(
                f"{self.url}: an archive, which cannot be read from object storage; copy it to a "
                "disk first, there `biomass store convert` makes it a store"
            )

        spec = attributes.get("spec")
        names = ["catalog"]
        if isinstance(spec, str):
            names += [array.name for array in StoreSpec.from_json(spec, self.url).arrays(1)]
        keys = [f"{name}/{ROOT}" for name in names]
        with Pool(N_THREADS) as pool:
            answers = pool.map(self._client.get, keys)
            for key, (content, _) in zip(keys, answers, strict=True):
                self._metadata[key] = content
        try:
            self._layout = laid_out(Path(), self._node)
        except BiomassError as err:
            # it was laid out as if here: the URL takes the place of the path `.` in the message
            told = f"{self.url}/{str(err).removeprefix('.')}".replace("/:", ":")
            raise type(err)(told) from err
        self._seal_N = self._bytes("seal", 0, 4 * self._layout.n).view("<u4")

    def _node(self, path: Path, node_type: str) -> dict:
        file = path / ROOT
        return parse_metadata(self._metadata[str(file)], file, node_type)

    def seals(self, n: int) -> np.ndarray:
        return self._seal_N

    def array(self, array: Array, span: tuple[int, int]) -> np.ndarray:
        return self._bytes(array.name, *span)

    def _bytes(self, name: str, start: int, end: int) -> np.ndarray:
        extent = self._layout.extents[name]
        offset = extent.offset
        return self._client.get_range(str(extent.paths[0]), offset + start, offset + end)

    def row(self, image: int, view: int, array: Array) -> np.ndarray:
        path, offset, n_bytes = self._layout.extents["patches"].locate_row(image, view)
        try:
            return self._client.get_range(str(path), offset, offset + n_bytes)
        except (NotThere, StoreDamaged):
            self.check_same()  # a shard of a store that was replaced is not damaged
            raise

    def check_same(self) -> None:
        """MismatchError if the store was replaced."""
        try:
            same = self._client.facts(SEALS) == self._mark
        except NotThere:
            same = False
        if not same:
            raise MismatchError(f"{self.url}: the store was replaced, open it again")

    def files(self) -> "ObjectFiles":
        return ObjectFiles(self._client, self._layout, self._metadata)

    def close(self) -> None:
        """Connections are obstore's, and close by themselves."""


class ObjectFiles:
    """The Files of a published store."""

    piece_bytes = 16 << 20  # a request takes its time, whatever it brings
    n_readers = 6

    def __init__(self, client: ObjectClient, layout: Layout, metadata: dict[str, bytes]) -> None:
        self.layout = layout
        self._client = client
        self._metadata = metadata

    def read_into(self, path: Path, buffer: np.ndarray, offset: int) -> None:
        into = buffer.reshape(-1).view(np.uint8)
        if not into.size:
            return
        try:
            into[:] = self._client.get_range(str(path), offset, offset + into.size)
        except NotThere as err:
            raise StoreDamaged(str(err)) from err

    def size(self, path: Path) -> int:
        try:
            return self._client.facts(str(path)).size
        except NotThere as err:
            raise StoreDamaged(str(err)) from err

    def metadata_crc(self) -> int:
        names = ["catalog", *sorted(self.layout.extents)]
        files = [ROOT, *(f"{name}/{ROOT}" for name in names)]
        return crc32c(*(self._metadata[file] for file in files))

    def close(self) -> None:
        """Nothing is kept open."""
