"""What is wrong with this installation, this machine or this folder: one line a check, for a person
with a problem.

Of the standard library alone, and packaging where it is there: it must run where numpy, torch or
h5py do not load. What may crash is tried in a process of its own. Folders are tried with temporary
files, stores are only opened.
"""

import fcntl
import json
import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from featurestore.about import DISTRIBUTION
from featurestore.checks import FAIL, OK, WARN, Check
from featurestore.disk.threads import check_thread
from featurestore.disk.urls import CACHE, default_root, is_url, without_token
from featurestore.disk.usable import (
    PROC,
    Memory,
    Mount,
    meminfo,
    mounts,
    read,
    usable_cpus,
    usable_memory,
)
from featurestore.errors import NO_TEMPORARY, SET_TMPDIR, BiomassError

TABLES = ("train.csv", "test.csv")  # what makes a folder one of data
PAGE = 4096
HOLE_BYTES = 16 << 20
LITTLE_ROOM = 10**9
LITTLE_MEMORY = 4 * 10**9  # the weights of the default backbone, 840 million in float32, are 3.4 GB
LOAD_SECONDS = 300  # torch from a cold network disk takes minutes
CPU_FLAGS = {"AVX-512": "avx512f", "AVX-512 bf16": "avx512_bf16", "AMX bf16": "amx_bf16"}
KINDS = {
    "tmpfs": ", in memory: gone after a restart",
    "ramfs": ", in memory: gone after a restart",
    "overlay": ", a container's own layer: gone with it",
}
SMALL_FILES = {"vfat", "msdos"}
MODIFIED = (
    'a command that ended in "Bus error" (SIGBUS) while it read this store: the store was modified'
)
TOGETHER = "install both in one run: pip install --upgrade torch torchvision"
LOAD = """
import json, warnings, torch, torchvision
from torchvision.transforms.v2 import functional
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
devices = [torch.cuda.get_device_properties(i) for i in range(n)]
sizes = [f"{each.name}, {each.total_memory / 1e9:.0f} GB" for each in devices]
said = [str(each.message) for each in said]
print(json.dumps({"cuda": torch.version.cuda, "said": said, "devices": sizes}))
"""


def examine(path: Path | str) -> list[Check]:
    """Everything checked: the installation, the machine, the folder at path, and the store there if
    it is one.

    path : or a store's URL; the folder is then the one that its rows are kept in.
    """
    mounted, n_cpus, n_cores = (
        mounts(read(PROC / "self/mountinfo")),
        usable_cpus(),
        len(os.sched_getaffinity(0)),
    )
    return [
        *check_packages(),
        check_pair(),
        check_temporary(),
        check_starting(),
        *check_loading(),
        check_cpu(read(PROC / "cpuinfo"), n_cpus),
        check_threads(os.environ.get("OMP_NUM_THREADS"), n_cpus, n_cores),
        check_memory(meminfo(), usable_memory()),
        *(check_served(path, mounted) if is_url(path) else check_place(path, mounted)),
    ]


def table(checks: list[Check]) -> str:
    """The report for people, aligned."""
    width = max(len(check.name) for check in checks)
    return "\n".join(
        f"{c.level:<4}  {c.name:<{width}}  {c.found}{'; ' if c.advice else ''}{c.advice}"
        for c in checks
    )


def to_json(checks: list[Check]) -> str:
    """The report for machines: a list of objects with name, level, found and advice."""
    return json.dumps([asdict(check) for check in checks], indent=1)


# -- the installation


def check_packages() -> Iterator[Check]:
    """Python and every package that our own metadata names, against the versions it allows."""
    try:
        from packaging.specifiers import SpecifierSet

        allowed, needed = (
            metadata.metadata(DISTRIBUTION)["Requires-Python"] or "",
            requirements(DISTRIBUTION),
        )
    except ModuleNotFoundError as err:
        # also of importlib.metadata, for a package that is not installed
        yield Check(
            "packages",
            WARN,
            f"not compared with what is needed: {err.name} is not installed",
            "pip install . in the project's folder",
        )
        return
    yield check_version(
        "Python", platform.python_version(), SpecifierSet(allowed), f"use Python {allowed}"
    )
    for each in needed:
        yield check_version(
            each.name,
            version(each.name),
            each.specifier,
            f"pip install '{each.name}{each.specifier}'",
        )


def check_version(name: str, found: str | None, allowed: Any, advice: str) -> Check:
    """allowed : packaging's SpecifierSet; found : None where there is none."""
    needed = f"{allowed or 'any version'} is needed"
    if found is None:
        return Check(name, FAIL, f"not installed, {needed}", advice)
    if not allowed.contains(found, prereleases=True):
        return Check(name, FAIL, f"{found}, {needed}", advice)
    return Check(name, OK, f"{found} ({needed})")


def check_pair() -> Check:
    """Whether torch is the one torchvision's metadata asks for: told without importing a pair that
    may crash."""
    try:
        needed = [each for each in requirements("torchvision") if each.name == "torch"]
    except ModuleNotFoundError as err:
        return Check("torch pair", WARN, f"not compared: {err.name} is not installed", TOGETHER)
    bad = [
        each
        for each in needed
        if not each.specifier.contains(version("torch") or "0", prereleases=True)
    ]
    pair = (
        f"torchvision {version('torchvision')} needs "
        f"torch{', '.join(str(each.specifier) for each in bad or needed)}"
    )
    return Check(
        "torch pair",
        FAIL if bad else OK,
        f"{pair}, found {version('torch')}",
        TOGETHER if bad else "",
    )


def requirements(name: str) -> list[Any]:
    """packaging's Requirements of an installed package, its extras left out; ModuleNotFoundError if
    there is none."""
    from packaging.requirements import Requirement

    found = [Requirement(text) for text in metadata.requires(name) or []]
    return [each for each in found if each.marker is None or each.marker.evaluate({"extra": ""})]


def version(name: str) -> str | None:
    """The installed version; None if there is none, or pip was killed before its metadata was
    whole."""
    try:
        return metadata.version(name)
    except (metadata.PackageNotFoundError, KeyError):
        return None


def check_temporary() -> Check:
    """Whether there is a folder for temporary files, without which torch does not load."""
    try:
        return Check("temporary files", OK, tempfile.gettempdir())
    except FileNotFoundError as err:
        return Check("temporary files", FAIL, str(err.strerror), SET_TMPDIR)


def check_starting() -> Check:
    """Whether this process may start a thread at all."""
    try:
        check_thread()
    except BiomassError as err:
        return Check("threads", FAIL, str(err))
    return Check("threads", OK, "can be started")


def check_loading() -> Iterator[Check]:
    """Whether torchvision truly loads, and what CUDA shows, told by another process: a bad library
    may take it down."""
    try:  # -P: a torch.py in the current folder is not what `biomass` would import
        done = subprocess.run(
            [sys.executable, "-P", "-c", LOAD], capture_output=True, text=True, timeout=LOAD_SECONDS
        )
    except subprocess.TimeoutExpired:
        yield Check(
            "torch loads",
            FAIL,
            f"not within {LOAD_SECONDS} s",
            "move the environment to a faster disk",
        )
        return
    except OSError as err:
        yield Check(
            "torch loads",
            FAIL,
            f"not tried, no process can be started: {err.strerror}",
            "raise `ulimit -u`",
        )
        return
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        signal = f"signal {-done.returncode}: " if done.returncode < 0 else ""
        advice = SET_TMPDIR if NO_TEMPORARY in said[-1] else TOGETHER
        yield Check(
            "torch loads", FAIL, f"torch and torchvision do not: {signal}{said[-1]}", advice
        )
        return
    yield Check("torch loads", OK, "torch and torchvision do")
    yield check_cuda(json.loads(done.stdout.splitlines()[-1]), Path("/dev/nvidiactl").exists())


def check_cuda(torch: dict[str, Any], has_driver: bool) -> Check:
    """torch : cuda (the version it is built for, or None), devices, and said, its warnings;
    has_driver : NVIDIA's."""
    if torch["devices"]:
        return Check(
            "CUDA", OK, "; ".join(f"cuda:{i} {name}" for i, name in enumerate(torch["devices"]))
        )
    if not has_driver:
        return Check("CUDA", OK, "no device: everything runs on the CPU")
    why = (
        f"this torch is built for CUDA {torch['cuda']}"
        if torch["cuda"]
        else "this torch is built without CUDA"
    )
    said = "".join(f": {' '.join(text.split())}" for text in torch["said"])
    return Check(
        "CUDA",
        WARN,
        f"there is an NVIDIA driver, torch sees no device; {why}{said}",
        "look at nvidia-smi and CUDA_VISIBLE_DEVICES, and install a torch for that driver "
        "(pytorch.org)",
    )


# -- the machine


def check_cpu(cpuinfo: str, n_cpus: int) -> Check:
    """cpuinfo : text of /proc/cpuinfo; n_cpus : those this process may use."""
    model = re.search(r"^model name\s*:\s*(.*)", cpuinfo, re.M)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.*)", cpuinfo, re.M)
    there = flags[1].split() if flags else []
    can = ", ".join(
        f"{name} {'yes' if flag in there else 'no'}" for name, flag in CPU_FLAGS.items()
    )
    return Check(
        "CPU",
        OK,
        f"{n_cpus} of {os.cpu_count()} usable, {model[1] if model else os.uname().machine}; {can}",
    )


def check_threads(value: str | None, n_cpus: int, n_cores: int) -> Check:
    """value : OMP_NUM_THREADS, which may be a list for nested loops; n_cpus : usable; n_cores : of
    the affinity, quota or not."""
    if value is None and n_cpus < n_cores:
        found = (
            f"not set: train takes a thread for each of {n_cores} cores, and the CPU quota "
            f"allows {n_cpus}"
        )
        return Check("OMP_NUM_THREADS", WARN, found, f"export OMP_NUM_THREADS={n_cpus}")
    if value is None:
        return Check("OMP_NUM_THREADS", OK, "not set: as many threads as cores")
    first = value.split(",")[0].strip()
    if not (first.isdecimal() and int(first)):
        return Check(
            "OMP_NUM_THREADS",
            WARN,
            f"{value!r} is no number, so it is not heeded",
            f"export OMP_NUM_THREADS={n_cpus}",
        )
    if int(first) > n_cpus:
        return Check(
            "OMP_NUM_THREADS",
            WARN,
            f"{first} threads on {n_cpus} CPUs wait for each other",
            f"export OMP_NUM_THREADS={n_cpus}",
        )
    return Check("OMP_NUM_THREADS", OK, first)


def check_memory(fields: dict[str, int], usable: Memory) -> Check:
    """fields : of /proc/meminfo, in bytes."""
    found = f"{fields.get('MemTotal', 0) / 1e9:.1f} GB in the machine; usable {usable}"
    if usable.n_bytes >= LITTLE_MEMORY:
        return Check("memory", OK, found)
    return Check(
        "memory",
        WARN,
        found,
        f"below {LITTLE_MEMORY / 1e9:.0f} GB the default backbone does not fit: free some, raise "
        "the limit or choose a smaller --backbone; `biomass train --plan` says what a sweep needs",
    )


# -- the folder and the store


def check_served(url: str, mounted: list[Mount]) -> Iterator[Check]:
    """The folder that rows from elsewhere are kept in, made if it is not there yet; and the store,
    opened."""
    folder = default_root()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        yield Check(
            "cache", FAIL, f"{folder}: {err.strerror}", f"choose another folder with {CACHE}"
        )
        return
    yield from check_folder(folder, mounted, FAIL)
    yield check_store(url)


def check_place(path: Path, mounted: list[Mount]) -> Iterator[Check]:
    """The folder at path, or that a store at path lies in, tried with temporary files; the store or
    data there, opened."""
    if path.name in TABLES:
        path = path.parent
    folder, store = locate(path)
    if not os.path.isdir(folder):
        yield Check("folder", FAIL, f"{folder}: no such folder", "make it, or give another")
        return
    is_data = store is None and any(os.path.isfile(folder / name) for name in TABLES)
    # a store or photographs can be read where nothing can be written
    yield from check_folder(folder, mounted, WARN if store or is_data else FAIL)
    if store:
        yield check_store(store)
    if is_data:
        yield from check_tables(folder)


def check_tables(folder: Path) -> Iterator[Check]:
    """The data in the folder, or why it cannot be looked at."""
    try:
        from featurestore.photos.data_folder import check_data

        yield from check_data(folder)
    except Exception as err:  # what a package raises that does not load: anything
        yield Check(
            "data",
            FAIL,
            f"{folder}: {type(err).__name__}: {' '.join(str(err).split())}",
            "if a line above FAILs, put that right first; else report this",
        )


def check_folder(folder: Path, mounted: list[Mount], read_only: str) -> Iterator[Check]:
    """A folder that is there; read_only : the level of one where nothing can be written."""
    yield check_file_system(folder, mounted)
    yield probe("free room", folder)
    writing = probe("writing", folder)
    if writing.level == OK:
        yield from (
            writing,
            *(probe(name, folder) for name in ("flock", "mmap", "sparse files", "fdatasync")),
        )
    else:
        yield Check(writing.name, read_only, writing.found, writing.advice)


def locate(path: Path) -> tuple[Path, Path | None]:
    """The folder to try, and the store at path or around it, if there is one: inside of a store
    nothing is ever tried."""
    path = Path(os.path.realpath(path))
    around = [
        each
        for each in (path, *path.parents)
        if each.suffix == ".zarr" or os.path.isfile(each / "zarr.json")
    ]
    if around:
        return around[-1].parent, around[-1]
    is_store = os.path.isfile(path) or path.suffix in {".h5", ".hdf5"}
    return (path.parent, path) if is_store else (path, None)


def check_file_system(folder: Path, mounted: list[Mount]) -> Check:
    """Which file system the folder is in: of the mount points above it the longest, mounted
    last."""
    above = [mount for mount in mounted if folder.is_relative_to(mount.point)]
    if not above:
        return Check("file system", OK, f"{folder}: not known to /proc/self/mountinfo")
    mount = max(reversed(above), key=lambda each: len(each.point))
    found = f"{folder}: {mount.kind}, {mount.source} on {mount.point}{KINDS.get(mount.kind, '')}"
    if mount.kind in SMALL_FILES:
        return Check(
            "file system",
            WARN,
            f"{found}: files end at 4 GB",
            "build NAME.zarr here, its files are smaller",
        )
    return Check("file system", OK, found)


def check_store(path: Path | str) -> Check:
    """One line about the store, or why it does not open."""
    try:
        from featurestore.store import FeatureStore

        with FeatureStore.open(path) as store:
            n_sealed, n_skipped = len(store.sealed), len(store.skipped)
            n_open = store.n_images - n_sealed - n_skipped
            skipped = f", {n_skipped} skipped" if n_skipped else ""
            found = (
                f"{store.path}: {n_sealed} of {store.n_images} images sealed{skipped}, "
                f"{len(store.view_names)} views, {store.spec.tokens.model}"
            )
    except BiomassError as err:  # it says what to do
        cause = MODIFIED if os.path.exists(path) else ""
        return Check("store", FAIL, " ".join(str(err).split()), cause)
    except Exception as err:  # what a package raises that does not load: anything
        shown = without_token(path) if is_url(path) else path
        return Check(
            "store",
            FAIL,
            f"{shown}: {type(err).__name__}: {' '.join(str(err).split())}",
            "if a line above FAILs, put that right first; else report this",
        )
    if n_open:
        return Check(
            "store", WARN, found, "the `biomass store build` that began it goes on from there"
        )
    return Check("store", OK, found)


def probe(name: str, folder: Path) -> Check:
    """Try one thing in the folder; whatever refuses says so by an OSError."""
    attempt, level, advice = PROBES[name]
    try:
        return Check(name, OK, attempt(folder))
    except OSError as err:
        return Check(name, level, str(err.strerror), advice)


def _scratch(folder: Path) -> IO[bytes]:
    """A file in the folder that goes when its block ends, also by an error."""
    return tempfile.NamedTemporaryFile(prefix=".biomass-doctor-", dir=folder, buffering=0)


def _free_room(folder: Path) -> str:
    room = shutil.disk_usage(folder)
    found = f"{room.free / 1e9:.3g} of {room.total / 1e9:.3g} GB"
    if room.total and room.free < LITTLE_ROOM:
        raise OSError(0, found)
    return found if room.total else "this file system does not tell"


def _writing(folder: Path) -> str:
    with _scratch(folder) as file:
        file.write(bytes(PAGE))
    return "files can be made here"


def _flock(folder: Path) -> str:
    with _scratch(folder) as file, open(file.name, "r+b") as other:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return "a second lock is refused, as it must be"
    raise OSError(0, "two locks were granted on one file")


def _mmap(folder: Path) -> str:
    with _scratch(folder) as file:
        file.write(bytes(PAGE))
        with mmap.mmap(file.fileno(), PAGE, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
            os.pwrite(file.fileno(), b"biomass", 0)
            if mapped[:7] != b"biomass":
                raise OSError(0, "a mapped file does not show what is written to it")
    return "a shared read-only map shows what is written"


def _sparse_files(folder: Path) -> str:
    with _scratch(folder) as file:
        os.ftruncate(file.fileno(), HOLE_BYTES)
        os.pwrite(file.fileno(), b"\1", HOLE_BYTES - 1)
        taken = 512 * os.fstat(file.fileno()).st_blocks
    if taken > HOLE_BYTES // 2:
        raise OSError(
            0,
            f"one byte at the end of a hole of {HOLE_BYTES / 1e6:.0f} MB takes {taken / 1e6:.0f} "
            "MB",
        )
    return "holes take no room"


def _fdatasync(folder: Path) -> str:
    with _scratch(folder) as file:
        file.write(bytes(PAGE))
        start = time.perf_counter()
        os.fdatasync(file.fileno())
        return f"{1e3 * (time.perf_counter() - start):.1f} ms"


# how to try, how bad it is if refused, and what to do then
PROBES: dict[str, tuple[Callable[[Path], str], str, str]] = {
    "free room": (
        _free_room,
        WARN,
        "make room; `biomass store build` says beforehand how much it needs",
    ),
    "writing": (
        _writing,
        FAIL,
        "reading a store works here; building one, and what train and predict leave, need another "
        "place",
    ),
    "flock": (
        _flock,
        FAIL,
        "reading a store works here; building one needs flock, which keeps a second builder out: "
        "build on a "
        "local disk and move the store",
    ),
    "mmap": (
        _mmap,
        FAIL,
        "a store can be neither read nor built here, both map its files: move it to a local disk",
    ),
    "sparse files": (
        _sparse_files,
        WARN,
        "reading and building work here; a new store takes all its room, and the time for it, "
        "at once",
    ),
    "fdatasync": (
        _fdatasync,
        FAIL,
        "reading a store works here; building one stops at its first commit: build on a local disk",
    ),
}
