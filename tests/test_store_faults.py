"""What happens to a store's files, a test a fault: an error that names the place, or the right
bytes; never others, never SIGBUS.

Ids name the faults: B of building, R of reading, C the contract (images committed or absent, one
writer, no file can do harm).
"""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from commands import biomass
from conftest import tiny_frame, tiny_rows, tiny_spec, write_tiny
from test_store import flip_bit
from test_writer import digest
from writer_child import builders

from featurestore import FeatureStore, open_writer
from featurestore.disk.durable import check_writable, locked
from featurestore.errors import BiomassError, InputError, LockedError, MismatchError, StoreDamaged
from featurestore.format import hdf5
from featurestore.format.layout import Extent
from featurestore.format.spec import Column

FORMATS = pytest.mark.parametrize("suffix", ["h5", "zarr"])
ROOM = 300 << 20  # bytes that refusing a store may take at most


@pytest.fixture(scope="module")
def child():
    """A function (path, **request) that builds or reads in a child; see writer_child."""
    with builders() as run:
        yield run


@pytest.fixture
def memory_path():
    with tempfile.TemporaryDirectory(
        dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    ) as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())


# -- one bit, in every region of every file


def spots_of(path: Path, rng: np.random.Generator, n: int) -> list[tuple[Path, int]]:
    """First, last and n other bytes of every array, and of all that lies before, between and behind
    them."""
    extents = FeatureStore.open(path).layout.extents.values()
    spots = []
    for file in files_of(path):
        cuts = {0, file.stat().st_size}
        for extent in extents:
            if file in extent.paths:
                cuts |= {
                    extent.offset,
                    extent.offset + extent.rows_in(extent.paths.index(file)) * extent.stride,
                }
        cuts = sorted(cut for cut in cuts if cut <= file.stat().st_size)
        for start, end in zip(cuts, cuts[1:], strict=False):
            spots += [
                (file, int(at)) for at in {start, end - 1, *rng.integers(start, end, n).tolist()}
            ]
    return spots


def check_flips(path: Path, spots: list[tuple[Path, int]], rng: np.random.Generator) -> int:
    """Flip a bit at each place in turn: verify finds it or opening refuses, and nothing wrong is
    returned; how many."""
    spec = FeatureStore.open(path).spec
    truth = [tiny_rows(spec, image) for image in range(5)]
    whole = digest(path)
    for file, offset in spots:
        bit = 1 << int(rng.integers(8))
        with open(file, "r+b", buffering=0) as handle:
            byte = os.pread(handle.fileno(), 1, offset)[0]
            os.pwrite(handle.fileno(), bytes([byte ^ bit]), offset)
            assert is_found(path), (file, offset, bit)
            assert not is_returned(path, truth), (file, offset, bit)
            os.pwrite(handle.fileno(), bytes([byte]), offset)
    assert digest(path) == whole
    return len(spots)


def is_found(path: Path) -> bool:
    try:
        with FeatureStore.open(path) as store:
            return not store.verify()
    except BiomassError:
        return True


def is_returned(path: Path, truth: list) -> bool:
    """Whether anything that reading on first touch gives is not what was put."""
    try:
        store = FeatureStore.open(path, check="first-touch")
    except BiomassError:
        return False
    return any(not is_right(store, image, rows) for image, rows in enumerate(truth))


def is_right(store: FeatureStore, image: int, truth) -> bool:
    try:
        rows = store.rows(image)
    except (BiomassError, IndexError):  # IndexError: a catalog that lost an id is shorter
        return True
    names = ("cls_VTD", "patches_VTPD", "pooled_VT5D", "stats_VS", "thumb_HW3")
    return (
        all(np.array_equal(getattr(rows, name), getattr(truth, name)) for name in names)
        and rows.facts == truth.facts
    )


def test_R14_C1_a_flipped_bit_is_found_in_every_region_of_every_file(store_path):
    write_tiny(store_path)
    rng = np.random.default_rng(0)
    assert (
        check_flips(
            store_path, spots_of(store_path, rng, 5 if store_path.suffix == ".h5" else 1), rng
        )
        > 100
    )


def is_gap(extent: Extent, at: int) -> bool:
    """Whether a byte of a shard lies behind a row and its CRC, before the next row."""
    row, within = divmod(at - extent.offset, extent.stride)
    has_row = 0 <= row < extent.rows_per_file
    return has_row and within >= extent.array.row_bytes + 4 * extent.row_crc


@pytest.mark.system
def test_R14_C1_a_flipped_bit_is_found_at_every_byte(store_path):
    """Every byte of files below 2000, every 7th of the others; of the gaps behind rows of patches,
    which are two thirds of a Zarr store's bytes, every 91st."""
    write_tiny(store_path)
    extent = FeatureStore.open(store_path).layout.extents["patches"]
    spots = []
    for file in files_of(store_path):
        size = file.stat().st_size
        for at in range(0, size, 1 if size < 2000 else 7):
            if at % 91 == 0 or not (file in extent.paths and is_gap(extent, at)):
                spots.append((file, at))
    print(store_path.suffix, check_flips(store_path, spots, np.random.default_rng(1)), "bits")


def test_R14_all_bad_rows_are_reported(store_path):
    write_tiny(store_path)
    layout = FeatureStore.open(store_path).layout
    bad = {(0, "hflip"), (2, "plain"), (2, "vflip"), (4, "vflip")}
    for image, view in bad:
        path, offset, _ = layout.extents["patches"].locate(
            image * 3 + ["plain", "hflip", "vflip"].index(view)
        )
        flip_bit(path, offset + 3)
    report = FeatureStore.open(store_path).verify()
    assert {(fault.image, fault.view) for fault in report.faults} == bad
    assert report.damaged == [0, 2, 4]
    stderr = biomass("store", "verify", store_path, code=4).stderr
    assert all(f"ID{image:03d} {view}: " in stderr for image, view in bad)


def test_C1_rot_on_first_touch_names_image_view_file_and_offset(store_path):
    write_tiny(store_path)
    path, offset, _ = FeatureStore.open(store_path).layout.extents["patches"].locate(3 * 3 + 1)
    flip_bit(path, offset + 20)
    with pytest.raises(
        StoreDamaged, match=rf"{path} at byte {offset}: image 3 \(ID003\), view 'hflip'"
    ):
        FeatureStore.open(store_path, check="first-touch")["ID003"].cls("plain")


# -- files that are cut or gone


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.system), 5])
def test_R02_a_file_cut_anywhere_is_an_error_at_open_never_sigbus(memory_path, child, every):
    """Every 4 KiB and one byte short, each file of both formats; read in a child, which a SIGBUS
    would kill."""
    n = 0
    for suffix in ("h5", "zarr"):
        path = memory_path / f"f.{suffix}"
        child(path)
        cuts = []
        for file in files_of(path):
            n_bytes = file.stat().st_size
            sizes = {*range(0, n_bytes, 4096), 1, n_bytes - 1}
            cuts += [(file, size) for size in sorted(sizes)]
        for file, size in cuts[::every]:
            data = file.read_bytes()
            os.truncate(file, size)
            died = child(path, act="read")
            assert died["status"] == 0, (file, size, died)
            assert re.match("StoreDamaged|InputError", died["error"]), (file, size, died)
            file.write_bytes(data)
            n += 1
        assert child(path, act="read")["right"] == [0, 1, 2, 3, 4]
    assert n > 100 / every


def test_R04_any_missing_file_is_an_error_never_zeros(memory_path, child):
    path = memory_path / "f.zarr"
    child(path)
    for file in files_of(path):
        file.rename(memory_path / "away")
        with pytest.raises(
            (StoreDamaged, InputError),
            match=re.escape(str(file.parent if file.name == "zarr.json" else file)),
        ):
            FeatureStore.open(path)
        (memory_path / "away").rename(file)
    assert FeatureStore.open(path).verify()


# -- foreign bytes in HDF5


def replaced(make):
    """An attack that puts something else where the array `cls` was."""

    def attack(file: h5py.File, folder: Path) -> None:
        shape = file["cls"].shape
        del file["cls"]
        make(file, shape, folder)

    return attack


def foreign_filter(file: h5py.File, shape, folder: Path) -> None:
    """As a plugin of somebody's would be asked for: filter 32015 is Zstandard's, and not here."""
    dcpl = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    dcpl.set_chunk(shape)
    dcpl.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
    h5py.h5d.create(file.id, b"cls", h5py.h5t.IEEE_F16LE, h5py.h5s.create_simple(shape), dcpl)


def virtual(file: h5py.File, shape, folder: Path) -> None:
    layout = h5py.VirtualLayout(shape, "<f2")
    layout[...] = h5py.VirtualSource(folder / "other.h5", "cls", shape=shape)
    file.create_virtual_dataset("cls", layout)


def soft_cycle(file: h5py.File, shape, folder: Path) -> None:
    file["other"] = h5py.SoftLink("/cls")
    file["cls"] = h5py.SoftLink("/other")


HDF5_ATTACKS = {
    "external link": replaced(
        lambda f, s, d: f.__setitem__("cls", h5py.ExternalLink(d / "other.h5", "cls"))
    ),
    "external link to a fifo": replaced(
        lambda f, s, d: f.__setitem__("cls", h5py.ExternalLink(d / "fifo", "cls"))
    ),
    "soft link": replaced(lambda f, s, d: f.__setitem__("cls", h5py.SoftLink("/pooled"))),
    "soft-link cycle": replaced(soft_cycle),
    "external storage": replaced(
        lambda f, s, d: f.create_dataset("cls", s, "<f2", external=[(str(d / "secret"), 0, 10**6)])
    ),
    "virtual dataset": replaced(virtual),
    "filter of a third party": replaced(foreign_filter),
    "gzip": replaced(lambda f, s, d: f.create_dataset("cls", s, "<f2", compression="gzip")),
    "fletcher32": replaced(
        lambda f, s, d: f.create_dataset("cls", s, "<f2", fletcher32=True, chunks=s)
    ),
    "variable-length text": replaced(
        lambda f, s, d: f.create_dataset("cls", s, h5py.string_dtype())
    ),
    "variable-length numbers": replaced(
        lambda f, s, d: f.create_dataset("cls", s, h5py.vlen_dtype("<f2"))
    ),
    "references": replaced(lambda f, s, d: f.create_dataset("cls", s, h5py.ref_dtype)),
    "compound": replaced(lambda f, s, d: f.create_dataset("cls", s, [("x", "<f2")])),
    "big-endian (R13)": replaced(
        lambda f, s, d: f.create_dataset("cls", s, ">f2", data=np.zeros(s, ">f2"))
    ),
    "another shape": replaced(
        lambda f, s, d: f.create_dataset(
            "cls", (*s[:-1], 8), "<f2", data=np.zeros((*s[:-1], 8), "<f2")
        )
    ),
    "never allocated": replaced(lambda f, s, d: f.create_dataset("cls", s, "<f2")),
    "compact": replaced(lambda f, s, d: compact(f, s)),
    "a group": replaced(lambda f, s, d: f.create_group("cls")),
    "a committed type": replaced(lambda f, s, d: f.__setitem__("cls", np.dtype("<f2"))),
    "tokens in chunks of another shape": lambda f, d: tokens_again(f, chunk=(1, 3)),
    "tokens in chunks backwards": lambda f, d: tokens_again(f, chunk=(1, 1), backwards=True),
    "tokens in chunks, some missing": lambda f, d: tokens_again(f, chunk=(1, 1), filled=False),
    "seals along two axes": lambda f, d: seals_again(f, (5, 1)),
    "no images": lambda f, d: seals_again(f, (0,)),
    "another format": lambda f, d: f.attrs.create("format", np.bytes_(b"somebody-elses")),
    "no format": lambda f, d: f.attrs.__delitem__("format"),
    "version 0": lambda f, d: f.attrs.create("format_version", 0),
    "version 2": lambda f, d: f.attrs.create("format_version", 2),
    "no spec": lambda f, d: f.attrs.__delitem__("spec"),
    "catalog elsewhere": lambda f, d: (
        f.move("catalog", "c"),
        f.__setitem__("catalog", h5py.SoftLink("/c")),
    ),
    "spec of 9 MB": lambda f, d: f.attrs.create("spec", "[" * 9_000_000, dtype=h5py.string_dtype()),
    "spec an array": lambda f, d: f.attrs.create("spec", np.zeros(5)),
    "format a reference": lambda f, d: f.attrs.create("format", f.ref, dtype=h5py.ref_dtype),
    "version a text": lambda f, d: f.attrs.create("format_version", "one"),
}


def tokens_again(file: h5py.File, chunk, backwards: bool = False, filled: bool = True) -> None:
    """The tokens as another program might rewrite them: the same values, elsewhere in the file."""
    patches = file["patches"][...]
    del file["patches"]
    again = file.create_dataset(
        "patches", patches.shape, "<f2", chunks=(*chunk, *patches.shape[2:])
    )
    rows = list(np.ndindex(patches.shape[:2]))
    for row in rows[::-1] if backwards else rows[: None if filled else 4]:
        again[row] = patches[row]
        file.flush()  # a chunk gets its place when it is written


def seals_again(file: h5py.File, shape: tuple) -> None:
    del file["seal"]
    file.create_dataset("seal", shape, "<u4", data=np.ones(shape, "<u4"))


def compact(file: h5py.File, shape) -> None:
    dcpl = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    dcpl.set_layout(h5py.h5d.COMPACT)
    h5py.h5d.create(file.id, b"cls", h5py.h5t.IEEE_F16LE, h5py.h5s.create_simple(shape), dcpl)


@pytest.mark.parametrize("attack", HDF5_ATTACKS.values(), ids=HDF5_ATTACKS.keys())
def test_R06_C5_foreign_hdf5_is_refused_before_any_read(memory_path, child, attack):
    path = memory_path / "f.h5"
    write_tiny(path)
    write_tiny(memory_path / "other.h5")
    (memory_path / "secret").write_bytes(b"s" * 10**6)
    os.mkfifo(memory_path / "fifo")
    with h5py.File(path, "r+", libver=("earliest", "latest")) as file:
        attack(file, memory_path)
    check_refused(child, path)


def check_refused(child, path: Path) -> None:
    """Opening is a typed error that names the store, within ROOM bytes of memory and few seconds
    of a CPU."""
    died = child(path, act="read", room=ROOM, rlimits={"RLIMIT_CPU": 3})
    assert died["status"] == 0 and re.match("StoreDamaged|InputError", died.get("error", "")), died
    assert str(path) in died["error"]


def test_R06_an_hdf5_file_that_says_it_is_huge_is_refused(memory_path, child):
    """Sparse, and well-formed: 2 ** 33 images, of which a reader must not make tables."""
    path = memory_path / "f.h5"
    spec = tiny_spec(tiny_frame(), width=1, n_tiles=1, tile_height=16, tile_width=16)
    hdf5.create(path, spec.model_copy(update={"has_patches": False, "thumb": None}), 2**33)
    check_refused(child, path)


# -- foreign metadata in Zarr


def edited(name: str, pattern: str, text: str):
    """An attack that replaces the first match in the metadata of a node."""

    def attack(path: Path) -> None:
        file = path / name / "zarr.json"
        new, n = re.subn(pattern, lambda match: text, file.read_text(), count=1)
        assert n == 1, pattern
        file.write_text(new)

    return attack


def linked(name: str, target: str):
    """An attack that puts a symbolic link, to a copy or to another path, in the place of a file or
    folder."""

    def attack(path: Path) -> None:
        (path / name).rename(path.parent / "elsewhere")
        (path / name).symlink_to(target or path.parent / "elsewhere")

    return attack


def piped(path: Path) -> None:
    (path / "cls/zarr.json").unlink()
    os.mkfifo(path / "cls/zarr.json")


def written(name: str, text: str):
    return lambda path: (path / name).write_text(text)


INNER = r'(?s)"codecs": \[\s*\{\s*"name": "bytes"'
ZARR_ATTACKS = {
    "version 2": edited("", '"zarr_format": 3', '"zarr_format": 2'),
    "an array of version 2": edited("cls", '"zarr_format": 3', '"zarr_format": 2'),
    "version 2 throughout": lambda path: [
        f.rename(f.parent / ".zgroup") for f in list(path.rglob("zarr.json"))
    ],
    "another format": edited("", '"format": "biomass-feature-store"', '"format": "somebody-elses"'),
    "no format": edited("", '"format": "biomass-feature-store",', ""),
    "format version 0": edited("", '"format_version": 1', '"format_version": 0'),
    "format version 2": edited("", '"format_version": 1', '"format_version": 2'),
    "an array where a group should be": edited(
        "catalog", '"node_type": "group"', '"node_type": "array"'
    ),
    "a group where an array should be": edited(
        "cls", '"node_type": "array"', '"node_type": "group"'
    ),
    "seals along two axes": edited("seal", r'"shape": \[[^]]*\]', '"shape": [5, 1]'),
    "no images": edited("seal", r'"shape": \[[^]]*\]', '"shape": [0]'),
    "another shape": edited("cls", r'"shape": \[[^]]*\]', '"shape": [5, 3, 2, 8]'),
    "float32 tokens": edited("cls", '"data_type": "float16"', '"data_type": "float32"'),
    "a shard of more images than there are": edited(
        "cls",
        r'(?s)("chunk_grid": .*?)"chunk_shape": \[[^]]*\]',
        '"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4000, 3, 2, 7]',
    ),
    "an irregular grid": edited("cls", '"name": "regular"', '"name": "rectangular"'),
    "rows without their checksum": edited("patches", r'(?s),\s*\{\s*"name": "crc32c"\s*\}', ""),
    "an index without its checksum": edited(
        "cls",
        r'(?s)("index_codecs": \[.*?\}),\s*\{\s*"name": "crc32c"\s*\}',
        '"index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}',
    ),
    "objects": edited("cls", '"data_type": "float16"', '"data_type": "object"'),
    "texts": edited("cls", '"data_type": "float16"', '"data_type": "string"'),
    "big-endian (R13)": edited("cls", '"endian": "little"', '"endian": "big"'),
    "zstd": edited(
        "cls", INNER, '"codecs": [{"name": "zstd", "configuration": {"level": 1}}, {"name": "bytes"'
    ),
    "pickle": edited("cls", INNER, '"codecs": [{"name": "pickle"}, {"name": "bytes"'),
    "transpose": edited(
        "cls",
        INNER,
        '"codecs": [{"name": "transpose", "configuration": {"order": [1, 0]}}, {"name": "bytes"',
    ),
    "not sharded": edited("cls", '"sharding_indexed"', '"gzip"'),
    "index at the start": edited("cls", '"index_location": "end"', '"index_location": "start"'),
    "2 ** 63 images": edited("seal", r'"shape": \[[^]]*\]', f'"shape": [{2**63}]'),
    "2 ** 24 images": edited("seal", r'"shape": \[[^]]*\]', f'"shape": [{2**24}]'),
    "true images": edited("seal", r'"shape": \[[^]]*\]', '"shape": [true]'),
    "a row of 2 ** 63": edited("patches", r'"shape": \[[^]]*\]', f'"shape": [5, 3, 2, 6, {2**63}]'),
    "a chunk of 1 TB": edited(
        "cls", r'"chunk_shape": \[[^]]*\]', f'"chunk_shape": [{2**40}, 3, 2, 7]'
    ),
    "a chunk of nothing": edited("cls", r'"chunk_shape": \[[^]]*\]', '"chunk_shape": [0, 3, 2, 7]'),
    "a negative chunk": edited("cls", r'"chunk_shape": \[[^]]*\]', '"chunk_shape": [-5, 3, 2, 7]'),
    "a chunk of texts": edited(
        "cls", r'"chunk_shape": \[[^]]*\]', '"chunk_shape": ["5", "3", "2", "7"]'
    ),
    "another key encoding": edited("cls", '"separator": "/"', '"separator": "/../"'),
    "deep JSON": written("cls/zarr.json", "[" * 10**6),
    "a number of a million digits": written("cls/zarr.json", f'{{"zarr_format": {"9" * 10**6}}}'),
    "17 MB of metadata": written("zarr.json", " " * (17 << 20)),
    "metadata of zeros without end": linked("cls/zarr.json", "/dev/zero"),
    "metadata that waits": piped,
    "metadata elsewhere": linked("cls/zarr.json", ""),
    "the root's metadata elsewhere": linked("zarr.json", ""),
    "an array elsewhere": linked("cls", ""),
    "the catalog elsewhere": linked("catalog", ""),
    "all shards elsewhere": linked("patches/c", ""),
    "a shard elsewhere": linked("patches/c/1/0/0/0/0", ""),
    "attributes a list": edited("", r'(?s)"attributes": \{.*?\n  \}', '"attributes": []'),
}


@pytest.mark.parametrize("attack", ZARR_ATTACKS.values(), ids=ZARR_ATTACKS.keys())
def test_R07_C5_foreign_zarr_is_refused_from_its_metadata(memory_path, child, attack):
    path = memory_path / "f.zarr"
    assert child(path)["status"] == 0
    attack(path)
    check_refused(child, path)


def test_R07_a_folder_of_one_shard_elsewhere_is_refused_when_it_is_read(memory_path, child):
    path = memory_path / "f.zarr"
    assert child(path)["status"] == 0
    linked("patches/c/1", "")(path)
    died = child(path, act="read", room=ROOM)
    assert died["status"] == 0
    # a shard here holds two images
    assert died["right"] == [0, 1, 4]
    assert FeatureStore.open(path).verify().damaged == [2, 3]


def test_R07_a_shard_without_sealed_images_that_is_laid_out_otherwise_is_found(
    tmp_path, monkeypatch
):
    """No row of it is read; a builder would be the first to open it."""
    monkeypatch.setattr("featurestore.format.zarr.SHARD_BYTES", 1)
    frame = tiny_frame()
    spec = tiny_spec(frame)
    path = tmp_path / "f.zarr"
    with open_writer(path, spec, frame) as writer:
        for image in range(3):
            writer.put(image, tiny_rows(spec, image))
    assert FeatureStore.open(path).verify()

    shard = FeatureStore.open(path).layout.extents["patches"].paths[4]
    data = bytearray(shard.read_bytes())
    data[-10] ^= 1
    shard.write_bytes(data)
    report = FeatureStore.open(path).verify()
    (fault,) = report.faults
    assert fault.path == str(shard) and "shard index" in fault.what
    assert fault.image is None and report.damaged == []


def test_R07_a_hierarchy_of_other_nodes_costs_nothing(tmp_path):
    path = tmp_path / "f.zarr"
    write_tiny(path)
    deep = path
    for _ in range(300):
        deep = deep / "g"
        deep.mkdir()
        (deep / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    for i in range(1000):
        (path / f"n{i}").mkdir()
    began = time.process_time()
    assert FeatureStore.open(path).n_sealed == 5
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "name",
    ["..", "../../etc/passwd", "/etc/passwd", "a/../../b", ".", "~2e~2e", "zarr.json", "c", "\0"],
)
def test_R07_C5_no_column_name_leaves_the_catalog(name):
    node = Column(name=name, kind="number").node
    assert re.fullmatch(r"catalog/[A-Za-z0-9_~-]+", node)


# -- who else has it open


def test_R08_a_foreign_writer_that_died_leaves_a_store_or_a_message(tmp_path):
    path = tmp_path / "f.h5"
    write_tiny(path)
    code = (
        f"import h5py, os; f = h5py.File({str(path)!r}, 'r+'); f['cls'][0]; os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    with pytest.raises(StoreDamaged, match="another program.*h5clear -s .*verify"):
        FeatureStore.open(path)
    if shutil.which("h5clear"):
        subprocess.run(["h5clear", "-s", path], check=True)
    else:
        clear_status(path)
    assert FeatureStore.open(path).verify()


def clear_status(path: Path) -> None:
    """As h5clear -s does: byte 11 of the superblock is zero, and its checksum (Jenkins' lookup3) is
    taken again."""
    data = bytearray(path.read_bytes())
    data[11] = 0
    data[44:48] = lookup3(bytes(data[:44])).to_bytes(4, "little")
    path.write_bytes(data)


def lookup3(data: bytes) -> int:
    """Bob Jenkins' hashlittle with initval 0 (burtleburtle.net/bob/c/lookup3.c), for lengths that
    are no multiple of 12."""

    def rotated(x: int, k: int) -> int:
        return (x << k | x >> 32 - k) & 0xFFFFFFFF

    a = b = c = 0xDEADBEEF + len(data) & 0xFFFFFFFF
    words = (
        np.frombuffer(data.ljust(-(-len(data) // 12) * 12, b"\0"), "<u4")
        .astype(object)
        .reshape(-1, 3)
    )
    for x, y, z in words[:-1]:
        a, b, c = a + x & 0xFFFFFFFF, b + y & 0xFFFFFFFF, c + z & 0xFFFFFFFF
        for k in (4, 6, 8, 16, 19, 4):
            a = (a - c & 0xFFFFFFFF) ^ rotated(c, k)
            c = c + b & 0xFFFFFFFF
            a, b, c = b, c, a
    a, b, c = (
        a + words[-1][0] & 0xFFFFFFFF,
        b + words[-1][1] & 0xFFFFFFFF,
        c + words[-1][2] & 0xFFFFFFFF,
    )
    for k in (14, 11, 25, 16, 4, 14, 24):
        c = (c ^ b) - rotated(b, k) & 0xFFFFFFFF
        a, b, c = b, c, a
    return b


def row_sum(store: FeatureStore, image: int) -> tuple[int, float]:
    return os.getpid(), float(
        store.patches[image, 1].astype(float).sum() + store.take([(image, 2)]).astype(float).sum()
    )


@pytest.fixture(scope="module", params=["fork", "spawn"])
def pool(request):
    """One for both formats: a spawned process imports for seconds."""
    n_processes = 2 if request.param == "fork" else 1
    with multiprocessing.get_context(request.param).Pool(n_processes) as pool:
        yield pool


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_R09_other_processes_read_the_same(store_path, pool):
    write_tiny(store_path)
    store = FeatureStore.open(store_path, check="first-touch")
    here = [row_sum(store, image)[1] for image in range(5)]
    there = pool.starmap(row_sum, [(store, image) for image in range(5)])
    assert [value for _, value in there] == here
    assert os.getpid() not in {pid for pid, _ in there}


class Rows:
    """A dataset as PyTorch's loaders take it."""

    def __init__(self, store: FeatureStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return 15

    def __getitem__(self, row: int) -> np.ndarray:
        return np.array(self.store.patches[divmod(row, 3)])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
# on one core
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes:UserWarning")
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.system)])
def test_R09_a_data_loaders_workers_read_the_same(store_path, method):
    from torch.utils.data import DataLoader

    spec = write_tiny(store_path)
    rows = Rows(FeatureStore.open(store_path))
    rows.store.take([(0, 0)])  # a descriptor and a map are there before the fork
    loader = DataLoader(rows, batch_size=4, num_workers=2, multiprocessing_context=method)
    got = np.concatenate([batch.numpy() for batch in loader])
    assert np.array_equal(
        got, np.concatenate([tiny_rows(spec, image).patches_VTPD for image in range(5)])
    )


def test_R09_a_pickled_handle_is_path_and_fingerprint_and_finds_no_other_store(store_path):
    import pickle

    write_tiny(store_path)
    handle = pickle.dumps(FeatureStore.open(store_path))
    assert len(handle) < 500
    shutil.rmtree(store_path) if store_path.is_dir() else store_path.unlink()
    with pytest.raises(InputError, match="no such store"):
        pickle.loads(handle)
    frame = tiny_frame()
    with open_writer(store_path, tiny_spec(frame, seed=1), frame):
        pass
    with pytest.raises(MismatchError, match="the store was replaced"):
        pickle.loads(handle)


def test_R10_a_store_that_is_deleted_or_replaced_is_read_on_or_refused_never_mixed(store_path):
    spec = write_tiny(store_path)
    store = FeatureStore.open(store_path)
    row = store.patches[0, 1]
    before = row.copy()
    store_path.rename(store_path.with_name(f"old{store_path.suffix}"))
    for what in ("gone", "replaced"):
        if what == "replaced":
            frame = tiny_frame()
            with open_writer(store_path, spec, frame) as writer:
                for image in range(5):
                    writer.put(image, tiny_rows(spec, 100 + image))
        assert np.array_equal(row, before)  # the map goes on
        for image in range(5):
            try:
                assert np.array_equal(
                    store.patches[image, 1], tiny_rows(spec, image).patches_VTPD[1]
                )
            except StoreDamaged as err:
                assert what in str(err)
        with pytest.raises(StoreDamaged, match=what):
            store.take([(1, 1)])


# -- places where nothing can be written or locked


def test_R11_a_store_one_may_only_read_is_read(memory_path, child):
    for suffix in ("h5", "zarr"):
        path = memory_path / f"f.{suffix}"
        child(path)
        for each in [path, *path.rglob("*")]:
            each.chmod(0o555 if each.is_dir() else 0o444)
    memory_path.chmod(0o555)
    nobody = {"uid": 65534} if os.getuid() == 0 else {}
    try:
        for suffix in ("h5", "zarr"):
            said = child(memory_path / f"f.{suffix}", act="read", **nobody)
            assert (said["right"], said["faults"]) == ([0, 1, 2, 3, 4], 0)
            assert "InputError" in child(memory_path / f"f.{suffix}", n=6, **nobody)["error"]
    finally:
        memory_path.chmod(0o755)


def test_R11_a_reader_takes_no_lock(store_path, monkeypatch):
    """Where flock fails, as on some network disks, reading works; and a builder's message says what
    to do."""
    write_tiny(store_path)

    def no_lock(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_lock)
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "TRUE")
    assert FeatureStore.open(store_path).verify()
    with pytest.raises(InputError, match="has no locks.*No locks available"):
        write_tiny(store_path)


@contextmanager
def mounted(folder: Path, *arguments: str):
    """A mount at the folder for as long as the block runs; the test is skipped where that is not
    allowed."""
    folder.mkdir(exist_ok=True)
    if os.getuid() or subprocess.run(["mount", *arguments, folder], capture_output=True).returncode:
        pytest.skip("needs root, and leave to mount")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.system
def test_R11_B07_a_read_only_mount_is_read_and_never_built_on(memory_path, child):
    home = memory_path / "home"
    home.mkdir()
    for suffix in ("h5", "zarr"):
        child(home / f"f.{suffix}")
    with mounted(memory_path / "ro", "--bind", str(home)):
        subprocess.run(["mount", "-o", "remount,ro,bind", memory_path / "ro"], check=True)
        for suffix in ("h5", "zarr"):
            path = memory_path / "ro" / f"f.{suffix}"
            said = child(path, act="read")
            assert (said["right"], said["faults"]) == ([0, 1, 2, 3, 4], 0)
            assert "Read-only file system" in child(path, n=6)["error"]
        with pytest.raises(InputError, match="Read-only file system"):
            check_writable(memory_path / "ro")


def test_B07_a_place_where_nothing_can_be_made_is_refused():
    with pytest.raises(InputError, match="cannot write there"):
        check_writable(Path("/proc"))


# -- a builder that cannot write


@pytest.mark.system
@FORMATS
def test_B04_a_full_disk_stops_with_one_line_and_goes_on_when_there_is_room(
    memory_path, child, suffix
):
    clean = memory_path / f"clean.{suffix}"
    child(clean, n=100)
    with mounted(
        memory_path / "small",
        "-t",
        "tmpfs",
        "-o",
        "size=100k" if suffix == "h5" else "size=500k",
        "tmpfs",
    ):
        path = memory_path / "small" / clean.name
        died = child(path, n=100)
        assert (
            died["status"] == 0
            and "No space left on device" in died["error"]
            and "\n" not in died["error"]
        )
        # while it is full: a hole in a tmpfs that has no room cannot be mapped
        said = child(path, act="read")
        assert (
            set(died["acknowledged"]) <= set(said["right"])
            and not said["wrong"]
            and not said["faults"]
        )
        assert 0 < len(died["acknowledged"]) < 100 == len(said["right"]) + len(said["refused"])
        subprocess.run(["mount", "-o", "remount,size=20m", memory_path / "small"], check=True)
        assert child(path, n=100)["status"] == 0
        assert digest(path) == digest(clean)


@pytest.mark.system
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
@FORMATS
@pytest.mark.parametrize(
    "fault",
    [
        "fdatasync:error=EIO",
        "pwritev2:error=EDQUOT",
        "pwritev2:error=EIO",
        "fsync:error=EIO",
        "rename:error=EIO",
    ],
)
def test_B05_B06_a_call_that_fails_is_never_believed(memory_path, child, suffix, fault):
    """From the N-th call on, for each N: a typed error, what was acknowledged is there, the next
    build ends at the same bytes."""
    clean = memory_path / f"clean.{suffix}"
    child(clean)
    n = 0
    while True:
        n += 1
        path = memory_path / f"{n}" / clean.name
        path.parent.mkdir()
        said = child(path, inject=f"{fault}:when={n}+")
        if "error" not in said:
            break
        assert (
            said["status"] == 0 and said["error"].startswith("InputError") and "calls" not in said
        )
        if path.exists():
            seen = child(path, act="read")
            assert not seen["wrong"] and set(said["acknowledged"]) <= set(seen["right"])
        else:
            assert not said["acknowledged"]
        assert child(path)["status"] == 0
        assert digest(path) == digest(clean), n
        shutil.rmtree(path.parent)
    print(suffix, fault, n - 1, "points")
    assert n > 1


@FORMATS
@pytest.mark.parametrize("limit", ["RLIMIT_FSIZE", "RLIMIT_NOFILE"], ids=["EFBIG", "EMFILE"])
def test_B06_a_limit_that_is_reached_is_a_typed_error_and_leaves_nothing_half(
    memory_path, child, suffix, limit
):
    path = memory_path / f"f.{suffix}"
    value = {"RLIMIT_FSIZE": 9000, "RLIMIT_NOFILE": 5}[limit]
    error = child(path, rlimits={limit: value})["error"]
    assert error.startswith("InputError") and re.search(
        "(?i)file too large|too many open files", error
    )
    assert "\n" not in error
    assert [each.name for each in memory_path.iterdir()] in ([f"f.{suffix}.lock"], [])
    assert child(path, limit=2)["status"] == 0
    assert "error" in child(path, rlimits={limit: value})
    said = child(path, act="read")
    assert {0, 1} <= set(said["right"]) and not said["wrong"] and not said["faults"]
    assert child(path)["status"] == 0
    assert child(path, act="read")["right"] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "name, number",
    [("pwritev", 122), ("pwritev", 28), ("fdatasync", 5)],
    ids=["EDQUOT", "ENOSPC", "EIO"],
)
def test_B05_B06_a_write_that_fails_stops_the_build_with_what_is_sealed(
    store_path, monkeypatch, name, number
):
    write_tiny(store_path, seal=2)
    frame = tiny_frame()
    spec = tiny_spec(frame)

    def failing(*_):
        raise OSError(number, os.strerror(number))

    with (
        pytest.raises(InputError, match=os.strerror(number)),
        open_writer(store_path, spec, frame) as writer,
    ):
        monkeypatch.setattr(os, name, failing)
        writer.put(2, tiny_rows(spec, 2))
    if name == "pwritev":  # the lock's own text fails first
        with pytest.raises(InputError, match=os.strerror(number)):
            write_tiny(store_path)
    monkeypatch.undo()
    assert FeatureStore.open(store_path).sealed.tolist() == [0, 1]
    write_tiny(store_path)
    assert FeatureStore.open(store_path).verify()


# -- locks


@pytest.mark.parametrize(
    "text",
    [
        '{"pid": 999999999, "host": "here", "since": "today"}',
        '{"pid": 1, "host": "here"}',
        '{"pid": 1, "host": "elsewhere.example"}',
        "",
        "\0" * 5000,
        "not json",
    ],
    ids=["dead pid", "reused pid", "other host", "empty", "zeros", "text"],
)
def test_B09_what_a_lock_file_says_does_not_count(tmp_path, text):
    (tmp_path / "f.h5.lock").write_text(text)
    write_tiny(tmp_path / "f.h5")
    assert FeatureStore.open(tmp_path / "f.h5").n_sealed == 5


def test_B09_a_killed_builders_lock_is_free(memory_path, child):
    path = memory_path / "f.h5"
    assert child(path, kill_at=60)["status"] == -9
    assert "pid" in json.loads((memory_path / "f.h5.lock").read_text())
    assert child(path)["status"] == 0


def test_B09_C4_a_forked_child_does_not_keep_the_lock(tmp_path):
    """A loader's worker that outlives the builder must not keep the next one out."""
    code = (
        "import os, sys, signal; from pathlib import Path; from featurestore.disk.durable import "
        "locked\n"
        f"with locked(Path({str(tmp_path / 'f.h5')!r})):\n"
        "    if os.fork(): os._exit(0)\n"
        # the child says so itself: it is past what fork runs in it
        "    print(os.getpid(), flush=True); signal.pause()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    ) as builder:
        survivor = int(builder.stdout.readline())
        try:
            builder.wait()
            with locked(tmp_path / "f.h5"):
                os.kill(survivor, 0)  # is alive
        finally:
            os.kill(survivor, signal.SIGKILL)


def test_B08_repair_waits_for_no_builder(store_path):
    write_tiny(store_path)
    with locked(store_path):
        assert (
            f'locked by {{"pid": {os.getpid()}'
            in biomass("store", "verify", store_path, "--repair", code=75).stderr
        )
        with pytest.raises(LockedError):
            write_tiny(store_path)


# -- a reader while a builder appends


@FORMATS
def test_B10_C4_ten_thousand_reads_of_a_growing_store_are_all_committed_rows(memory_path, suffix):
    """The builder, in another process, is one commit ahead of what was read; each read is compared
    with its row's CRC-32C."""
    from concurrent.futures import ThreadPoolExecutor

    from featurestore.disk.durable import crc32c

    path, n, rng = memory_path / f"f.{suffix}", 60, np.random.default_rng(0)
    truth = [
        [crc32c(row) for row in tiny_rows(tiny_spec(tiny_frame()), image).patches_VTPD]
        for image in range(n)
    ]
    os.mkfifo(fifo := memory_path / "pace")
    with (
        builders() as run,
        ThreadPoolExecutor(1) as pool,
        open(fifo, "r+b", buffering=0) as pace,
    ):
        run(path, n=n, limit=1)
        building = pool.submit(run, path, n=n, pace=str(fifo))
        store, seen, reads = FeatureStore.open(path), set(), 0
        while reads < 10_000 or not building.done():
            # compared first: flatnonzero of the map itself fails when the builder seals an image
            # between its two passes
            sealed = np.flatnonzero(store.array("seal")[:n] != 0)
            if len(sealed) not in seen:
                seen.add(len(sealed))
                pace.write(b"+")
            for image in rng.choice(sealed, 100).tolist():
                view = reads % 3
                row = (
                    store.take([(image, view)])[0]
                    if reads % 20 == 0
                    else store.patches[image, view]
                )
                assert crc32c(row) == truth[image][view], (image, view)
                reads += 1
        assert building.result()["status"] == 0
    assert len(seen) >= n - 2  # two images share a commit; another two may be seen at once
    assert store.sealed.tolist() == list(range(n))


# -- shapes of stores


def test_B30_one_image_and_no_view(store_path):
    write_tiny(store_path, n=1)
    assert FeatureStore.open(store_path).verify().n_sealed == 1
    with pytest.raises(ValueError, match="at least 1 item"):
        tiny_spec(tiny_frame(1), views=())


@pytest.mark.parametrize("n", [10**5, pytest.param(10**6, marks=pytest.mark.system)])
def test_B30_a_catalog_of_a_hundred_thousand_opens_within_a_second(tmp_path, n):
    """Metadata only; the limit is the design's, and ten times as many images may take ten times as
    long to look through."""
    frame = pd.DataFrame(
        {
            "image_id": [f"ID{i:07d}" for i in range(n)],
            "path": "a.jpg",
            "Dry_Total_g": np.arange(n) * 1.0,
        }
    )
    path = tmp_path / "f.h5"
    with open_writer(path, tiny_spec(frame), frame):
        pass
    began = time.process_time()
    store = FeatureStore.open(path)
    assert store.n_images == n and store.n_sealed == 0 and len(store.catalog) == n
    assert time.process_time() - began < n / 1e5


def test_R13_arrays_at_odd_offsets_give_the_right_values(tmp_path, monkeypatch):
    """An HDF5 file packed without alignment: numpy reads misaligned numbers, slower."""
    monkeypatch.setattr(hdf5, "PAGE", 1)
    path = tmp_path / "f.h5"
    spec = write_tiny(path, n=3)
    store = FeatureStore.open(path)
    assert any(
        extent.offset % 8 for extent in store.layout.extents.values() if extent.array.dtype == "<f8"
    )
    assert np.array_equal(store.patches[2, 1], tiny_rows(spec, 2).patches_VTPD[1])
    assert np.array_equal(store.take([(2, 1)])[0], tiny_rows(spec, 2).patches_VTPD[1])
    assert store.catalog["Dry_Total_g"].tolist() == [1, 2.5, 4] and store.verify()


def test_R02_a_file_that_is_too_long_is_refused_or_found_by_verify(store_path):
    """Who appends to a file has changed it: Zarr's files have one length, and of an HDF5 file
    verify sums every byte."""
    write_tiny(store_path)
    longer = store_path if store_path.is_file() else store_path / "patches/c/0/0/0/0/0"
    with open(longer, "ab") as file:
        file.write(b"more")
    if store_path.suffix == ".zarr":
        with pytest.raises(StoreDamaged, match=f"{longer}: .* bytes long, .* bytes expected"):
            FeatureStore.open(store_path)
    else:
        (fault,) = FeatureStore.open(store_path).verify().faults
        assert "the metadata is not what was laid out" in fault.what


@pytest.mark.parametrize("linked", ["folder", "store"])
def test_R07_a_store_may_lie_under_a_linked_folder_or_be_linked_itself(store_path, linked):
    """Links are refused inside a store; how one comes to it is the user's business."""
    real = store_path.parent / "real" / store_path.name
    real.parent.mkdir()
    spec = write_tiny(real)
    link = store_path.parent / ("linked" if linked == "folder" else store_path.name)
    link.symlink_to(real.parent if linked == "folder" else real)
    store = FeatureStore.open(link / store_path.name if linked == "folder" else link)
    assert np.array_equal(store.patches[3, 1], tiny_rows(spec, 3).patches_VTPD[1])
    assert store.verify()
