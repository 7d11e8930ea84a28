"""The HDF5 format: one file whose every dataset is one unfiltered block of bytes at a known offset.

libhdf5 lays the file out once (early allocation, no fill, sparse) and never opens it for writing
again: rows are written and mapped by offset. Only this module knows HDF5.
"""

from pathlib import Path

import numpy as np

from featurestore.disk.durable import PAGE, crc32c
from featurestore.disk.maps import with_room
from featurestore.errors import InputError, StoreDamaged
from featurestore.format.layout import MOST_IMAGES, Extent, Layout, check_format, read_spec
from featurestore.format.spec import FORMAT, Array, StoreSpec


def create(path: Path, spec: StoreSpec, n: int) -> None:
    """Lay out an empty store for n images; 65.8 GB take milliseconds, since nothing is written."""
    import h5py

    arrays = spec.arrays(n)
    sizes: dict[str, int] = {}
    for array in arrays:
        sizes |= zip(array.dims, array.shape, strict=True)

    try:
        with _new_file(path) as file:
            _add_attribute(file, "format", FORMAT)
            file.attrs["format_version"] = np.int64(spec.format_version)
            _add_attribute(file, "spec", spec.to_json())
            h5py.h5g.create(file.id, b"catalog", gcpl=_untimed(h5py.h5p.GROUP_CREATE))
            # dimensions first: datasets are attached to them
            for number, (dim, size) in enumerate(sizes.items()):
                _add_dimension(file, dim, size, number)
            for array in arrays:
                _add_dataset(file, array)
    except (OSError, RuntimeError) as err:
        # how libhdf5 says that the disk is full, or the file too large
        raise InputError(
            f"{path}: cannot be created: {str(err).splitlines()[0]}; make room there"
        ) from err


def open_layout(path: Path) -> Layout:
    """Read the metadata with libhdf5, once.

    Foreign links, filters or external bytes are refused before any read.
    """
    try:
        with _open_unlocked(path) as file:
            version = _attribute(file, "format_version")
            check_format(path, _attribute(file, "format"), version)
            spec = read_spec(path, _attribute(file, "spec"), version)
            seal = _dataset(file, "seal")
            if len(seal.shape or ()) != 1 or not 1 <= seal.shape[0] <= MOST_IMAGES:
                raise StoreDamaged(
                    f"{path}: array 'seal' has shape {seal.shape}, one axis of 1 to {MOST_IMAGES} "
                    "images expected"
                )
            n = seal.shape[0]
            extents = {array.name: _extent(path, file, array) for array in spec.arrays(n)}
    except PermissionError:  # an OSError, which `choose` tells of in its own words
        raise
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as err:
        # libhdf5 complains by any of these
        if "h5clear" in str(err):
            raise StoreDamaged(
                f"{path}: another program has it open for writing, or died so: stop it, then "
                f"`h5clear -s {path}` (of hdf5-tools) and `biomass store verify {path}`"
            ) from err
        raise InputError(
            f"{path}: not a readable HDF5 file: {str(err).splitlines()[0]}; if it was a store, "
            "restore it or build it again"
        ) from err

    # a file that ends before its arrays do was cut; how much libhdf5 put behind them is its own
    end = max(extent.offset + extent.array.n_bytes for extent in extents.values())
    size = max(path.stat().st_size, end)
    layout = Layout(path, spec, extents, {path: size})
    layout.check_sizes()
    return layout


def metadata_crc(layout: Layout) -> int:
    """CRC-32C of all bytes of the file that belong to no array; they never change."""
    extents = layout.extents.values()
    spans = sorted((extent.offset, extent.array.n_bytes) for extent in extents)
    # what lies before each array, and behind the last one up to the end of the file
    crc, at = 0, 0
    with open(layout.path, "rb") as file:
        for start, n_bytes in [*spans, (layout.sizes[layout.path], 0)]:
            file.seek(at)
            crc = crc32c(file.read(max(0, start - at)), start=crc)
            at = start + n_bytes
    return crc


def _open_unlocked(path: Path):
    """Open to read without a lock: metadata never changes, and not every file system can lock.

    Unless this process has the file open in h5py already: libhdf5 then insists on the same choice.
    """
    import h5py

    try:
        return with_room(path, lambda: h5py.File(path, "r", locking=False))
    except OSError as err:
        if "locking" not in str(err):
            raise
        return h5py.File(path, "r")


def _new_file(path: Path):
    import h5py

    fapl = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    # v110 exactly: the implicit chunk index needs it, newer bounds would lock older readers out
    fapl.set_libver_bounds(h5py.h5f.LIBVER_V110, h5py.h5f.LIBVER_V110)
    fapl.set_alignment(PAGE, PAGE)
    fcpl = _untimed(h5py.h5p.FILE_CREATE)
    file_id = h5py.h5f.create(bytes(path), h5py.h5f.ACC_EXCL, fcpl=fcpl, fapl=fapl)
    return h5py.File(file_id)


def _untimed(kind):
    """A creation property list without time stamps: the same store must be the same bytes."""
    import h5py

    plist = h5py.h5p.create(kind)
    plist.set_obj_track_times(False)
    return plist


def _add_attribute(file, name: str, text: str) -> None:
    import h5py

    data = text.encode()
    file.attrs.create(name, np.bytes_(data), dtype=h5py.string_dtype("utf-8", len(data)))


def _add_dimension(file, name: str, size: int, number: int) -> None:
    """A dimension as netCDF-4 has it, so that its readers, as xarray, name the axes.

    It takes no room.

    Source: NetCDF-4 file format specification, "Dimensions without coordinate variables".
    """
    import h5py

    dcpl = _untimed(h5py.h5p.DATASET_CREATE)
    dcpl.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    dcpl.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple((size,))
    of_type = h5py.h5t.IEEE_F32BE
    dataset_id = h5py.h5d.create(file.id, name.encode(), of_type, space, dcpl)
    dataset = h5py.Dataset(dataset_id)
    # netCDF-4 tells such a dimension by this very text
    text = b"This is a netCDF dimension but not a netCDF variable. %10d" % size
    h5py.h5ds.set_scale(dataset_id, text)
    dataset.attrs.create("_Netcdf4Dimid", number, dtype="i4")


def _add_dataset(file, array: Array) -> None:
    import h5py

    dcpl = _untimed(h5py.h5p.DATASET_CREATE)
    # early: every byte has its offset from now on; no fill: the file stays sparse
    dcpl.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    dcpl.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    if array.row_axes == 2:
        # a chunk a row; allocated early and of fixed size they get the implicit index, and lie one
        # after another
        dcpl.set_chunk((1, 1, *array.row_shape))
    space = h5py.h5s.create_simple(array.shape)
    dtype = h5py.h5t.py_create(np.dtype(array.dtype))
    dataset_id = h5py.h5d.create(file.id, array.name.encode(), dtype, space, dcpl)
    dataset = h5py.Dataset(dataset_id)
    labelled = zip(dataset.dims, array.dims, strict=True)
    for axis, (dim, label) in enumerate(labelled):
        dim.label = label
        h5py.h5ds.attach_scale(dataset.id, file[label].id, axis)


def _attribute(file, name: str) -> object:
    value = file.attrs.get(name)
    return value.decode() if isinstance(value, bytes) else value


def _dataset(file, name: str):
    """The dataset behind hard links only, of bytes in this very file; else StoreDamaged."""
    import h5py

    group = file
    for part in name.split("/"):
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if not isinstance(link, h5py.HardLink):
            raise StoreDamaged(
                f"{file.filename}: array {name!r} is missing or is a link to elsewhere"
            )
        group = group[part]
    if (
        not isinstance(group, h5py.Dataset)
        or group.external
        or group.is_virtual
        or group.id.get_create_plist().get_nfilters()
    ):
        raise StoreDamaged(
            f"{file.filename}: "
            f"array {name!r} is not plain bytes in this file (a filter, or external)"
        )
    return group


def _extent(path: Path, file, array: Array) -> Extent:
    dataset = _dataset(file, array.name)
    if dataset.shape != array.shape or dataset.dtype != np.dtype(array.dtype):
        raise StoreDamaged(
            f"{path}: array {array.name!r} is {dataset.dtype} {dataset.shape}, its spec says "
            f"{array.dtype} {array.shape}"
        )
    offset = _offset(path, dataset, array)
    return Extent(array, (path,), array.n_rows, offset, array.row_bytes)


def _offset(path: Path, dataset, array: Array) -> int:
    if dataset.chunks is None:
        offset = dataset.id.get_offset()
        if offset is None:
            raise StoreDamaged(
                f"{path}: array {array.name!r} has no place in the file; build the store again"
            )
        return offset

    # of the implicit index: where the ends are right, all chunks between them are
    start = (0,) * len(array.shape)
    last_row = tuple(size - 1 for size in array.shape[:2])
    last = last_row + (0,) * len(array.row_shape)
    first = dataset.id.get_chunk_info_by_coord(start).byte_offset
    end = dataset.id.get_chunk_info_by_coord(last).byte_offset
    if (
        first is None
        or end is None
        or dataset.chunks != (1, 1, *array.row_shape)
        or end - first != (array.n_rows - 1) * array.row_bytes
    ):
        raise StoreDamaged(
            f"{path}: the chunks of {array.name!r} do not lie in one block; another program "
            "rewrote this store, build it again"
        )
    return first
