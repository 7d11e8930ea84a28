"""Where the bytes of a store are: what reading, writing and verifying ask of both formats."""

import os
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path

from featurestore.disk.maps import with_room
from featurestore.errors import InputError, StoreDamaged
from featurestore.format.spec import ARCHIVE_FORMAT, FORMAT, FORMAT_VERSIONS, Array, StoreSpec

OTHER_INDEX = "its shard index is not the one of this layout"
# and so shards: metadata of somebody else's must not make us allocate without end
MOST_IMAGES = 1 << 24


@dataclass(frozen=True)
class Extent:
    """One array on disk: row r is `array.row_bytes` bytes of file r // rows_per_file.

    In C order, little-endian.
    """

    array: Array
    paths: tuple[Path, ...]
    rows_per_file: int
    offset: int
    stride: int
    """Bytes from one row to the next in a file."""
    row_crc: bool = False
    """Whether four bytes of CRC-32C follow each row (the inner codec of a Zarr shard)."""

    def locate(self, row: int) -> tuple[Path, int, int]:
        """File, offset and length in bytes of one row."""
        file, within = divmod(row, self.rows_per_file)
        return self.paths[file], self.offset + within * self.stride, self.array.row_bytes

    def locate_row(self, image: int, view: int) -> tuple[Path, int, int]:
        """File, offset and length in bytes of one (image, view) of patches."""
        return self.locate(image * self.array.shape[1] + view)

    def locate_image(self, image: int) -> tuple[int, int]:
        """Number of the file that holds an image's patches, and where in it its first view is.

        A file holds whole images, so that all views of one follow there.
        """
        return divmod(image * self.array.shape[1], self.rows_per_file)

    def rows_in(self, file: int) -> int:
        return min(self.rows_per_file, self.array.n_rows - file * self.rows_per_file)

    def images_in(self, file: int) -> range:
        """Images whose patches one file holds."""
        n_views = self.array.shape[1]
        first = file * self.rows_per_file // n_views
        return range(first, first + self.rows_in(file) // n_views)


@dataclass(frozen=True)
class Layout:
    """An opened store's spec, where each array lies, and how long each file must be."""

    path: Path
    spec: StoreSpec
    extents: dict[str, Extent]
    sizes: dict[Path, int]
    """Bytes of each file."""
    padding: tuple[tuple[Path, int, int], ...] = ()
    """File, offset and length of bytes behind an array's last row that are zero."""
    indices: dict[Path, tuple[int, bytes]] = field(default_factory=dict)
    """Offset and bytes of what follows the rows of a Zarr shard: its index."""
    inodes: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """Device and inode of each file as its size was checked: the store that was opened, whatever
    takes its name later."""
    _looked_at: set[Path] = field(default_factory=set)
    """Files whose index and folders were checked, when they were first opened."""

    @property
    def n(self) -> int:
        """Images there is room for."""
        return self.extents["seal"].array.n_rows

    def row_parts(self, image: int, view: int) -> list[tuple[Path, int, int]]:
        """File, offset and length of the parts of a row that its CRC-32C covers, in that order."""
        n_views = len(self.spec.tokens.views)
        parts = []
        for name in ("cls", "patches", "pooled", "stats"):
            if name == "patches" and self.spec.has_patches:
                parts.append(self.extents[name].locate_row(image, view))
            elif name != "patches":
                # a row of these holds all views of an image
                path, offset, of_views = self.extents[name].locate(image)
                n_bytes = of_views // n_views
                parts.append((path, offset + view * n_bytes, n_bytes))
        return parts

    def check_sizes(self) -> None:
        """StoreDamaged if a file is missing, cut or a link.

        Mapping it would end in SIGBUS, read as zeros, or read elsewhere.
        """
        for path, size in self.sizes.items():
            try:
                # only the store itself may be a link
                found = os.stat(path) if path == self.path else os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                found = None
            if found is not None and stat.S_ISLNK(found.st_mode):
                raise _link(path)
            is_whole = found is not None and stat.S_ISREG(found.st_mode) and found.st_size == size
            if not is_whole:
                found_text = f"{found.st_size} bytes long" if found else "missing"
                raise StoreDamaged(
                    f"{path}: {found_text}, {size} bytes expected; "
                    "restore it or build the store again"
                )
            self.inodes[path] = found.st_dev, found.st_ino

    def open_file(self, path: Path, access: int = os.O_RDONLY) -> int:
        """A descriptor of one of the store's files.

        StoreDamaged if it is not the file that was checked, or was cut; and when it is first
        opened, if a folder above it is a link or it is not laid out as the format says: a store of
        35,000 shards would take long to open otherwise.
        """
        try:
            fd = with_room(path, lambda: os.open(path, access | os.O_CLOEXEC))
        except FileNotFoundError as err:
            raise StoreDamaged(
                f"{path}: gone since the store was opened; restore it or build the store again"
            ) from err
        try:
            # of the descriptor: the name may lead to another file by now
            found = os.fstat(fd)
            is_same = (found.st_dev, found.st_ino) == self.inodes[path]
            if not is_same or found.st_size < self.sizes[path]:
                raise StoreDamaged(
                    f"{path}: replaced or cut since the store was opened; open the store again"
                )
            if path not in self._looked_at:
                self._check_folders(path)
                offset, expected = self.indices.get(path, (0, b""))
                if os.pread(fd, len(expected), offset) != expected:
                    raise StoreDamaged(f"{path}: {OTHER_INDEX}; restore it or build again")
                self._looked_at.add(path)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def renamed(self, path: Path) -> "Layout":
        """The layout of this store once its file or folder has another name."""
        old, new = str(self.path), str(path)
        name_of = {file: Path(new + str(file)[len(old) :]) for file in self.sizes}
        extents = {}
        for array, extent in self.extents.items():
            extents[array] = replace(extent, paths=tuple(map(name_of.get, extent.paths)))
        return Layout(
            path,
            self.spec,
            extents,
            {name_of[file]: size for file, size in self.sizes.items()},
            tuple((name_of[file], *span) for file, *span in self.padding),
            {name_of[file]: index for file, index in self.indices.items()},
            {name_of[file]: inode for file, inode in self.inodes.items()},
        )

    def accept(self, path: Path) -> None:
        """Take the file that has this name now for the store's: whoever writes it replaced it."""
        found = os.stat(path)
        self.inodes[path] = found.st_dev, found.st_ino
        self._looked_at.discard(path)

    def _check_folders(self, path: Path) -> None:
        """StoreDamaged if a folder of the store above one of its files is a link."""
        # as text, since pathlib takes longer than the kernel
        root, folder = str(self.path), os.path.dirname(path)
        while len(folder) > len(root):
            if os.path.islink(folder):
                raise _link(folder)
            folder = os.path.dirname(folder)


def _link(path: Path | str) -> StoreDamaged:
    return StoreDamaged(f"{path}: a link; a store's own files are not followed elsewhere")


def check_format(path: Path, name: object, version: object) -> None:
    """InputError for no store, or for one of a version this program does not know."""
    if name == ARCHIVE_FORMAT:
        raise InputError(
            f"{path}: an archive, a compressed copy that cannot be mapped; `biomass store convert "
            f"{path} OUT.h5` makes it a store again"
        )
    if name != FORMAT:
        raise InputError(f"{path}: not a {FORMAT}: its root attribute 'format' is {name!r}")
    check_version(path, version)


def check_version(path: Path, version: object) -> None:
    """InputError for a version that this program does not know."""
    if version not in FORMAT_VERSIONS:
        known = " and ".join(map(str, FORMAT_VERSIONS))
        raise InputError(
            f"{path}: format version {version}, this program reads {known}; use a newer biomass"
        )


def read_spec(path: Path, text: object, version: object) -> StoreSpec:
    """The spec of a store; StoreDamaged where it is of another version than the store says."""
    spec = StoreSpec.from_json(str(text), str(path))
    if spec.format_version != version:
        raise StoreDamaged(
            f"{path}: says format version {version}, its spec is of {spec.format_version}"
        )
    return spec
