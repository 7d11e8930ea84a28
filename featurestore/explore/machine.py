"""Whether CPU, threads, memory and the file system of a folder do what this program needs."""

import fcntl
import mmap
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from featurestore.checks import FAIL, OK, WARN, Check
from featurestore.disk.usable import (
    Memory,
    Mount,
)

PAGE = 4096


HOLE_BYTES = 16 << 20


LITTLE_ROOM = 10**9


LITTLE_MEMORY = 4 * 10**9  # the weights of the default backbone, 840 million in float32, are 3.4 GB


CPU_FLAGS = {"AVX-512": "avx512f", "AVX-512 bf16": "avx512_bf16", "AMX bf16": "amx_bf16"}


KINDS = {
    "tmpfs": ", in memory: gone after a restart",
    "ramfs": ", in memory: gone after a restart",
    "overlay": ", a container's own layer: gone with it",
}


SMALL_FILES = {"vfat", "msdos"}


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
    """Whether OMP_NUM_THREADS fits the CPUs that are usable.

    value : the variable, which may be a list for nested loops. n_cpus : usable. n_cores : of the
    affinity, quota or not.
    """
    if value is None and n_cpus < n_cores:
        found = (
            "not set: "
            f"train takes a thread for each of {n_cores} cores, and the CPU quota allows {n_cpus}"
        )
        return Check("OMP_NUM_THREADS", WARN, found, f"export OMP_NUM_THREADS={n_cpus}")
    if value is None:
        return Check("OMP_NUM_THREADS", OK, "not set: as many threads as cores")
    # OpenMP takes a list, a number for each level of nesting
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


def check_file_system(folder: Path, mounted: list[Mount]) -> Check:
    """Which file system the folder is in: of the longest mount point above it, the last."""
    above = [mount for mount in mounted if folder.is_relative_to(mount.point)]
    if not above:
        return Check("file system", OK, f"{folder}: not known to /proc/self/mountinfo")
    # of mounts at one point the last hides the others; max keeps the first that it meets
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
        except (BlockingIOError, PermissionError):  # which of the two depends on the file system
            return "a second lock is refused, as it must be"
    raise OSError(0, "two locks were granted on one file")


def _mmap(folder: Path) -> str:
    with _scratch(folder) as file:
        file.write(bytes(PAGE))
        with mmap.mmap(file.fileno(), PAGE, mmap.MAP_SHARED, mmap.PROT_READ) as mapped:
            # as a builder does beside readers: by the descriptor, not through the map
            os.pwrite(file.fileno(), b"biomass", 0)
            if mapped[:7] != b"biomass":
                raise OSError(0, "a mapped file does not show what is written to it")
    return "a shared read-only map shows what is written"


def _sparse_files(folder: Path) -> str:
    with _scratch(folder) as file:
        os.ftruncate(file.fileno(), HOLE_BYTES)
        os.pwrite(file.fileno(), b"\1", HOLE_BYTES - 1)
        taken = 512 * os.fstat(file.fileno()).st_blocks  # which are of 512 bytes everywhere
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
        "build on a local disk and move the store",
    ),
    "mmap": (
        _mmap,
        FAIL,
        "a store can be neither read nor built here, both map its files: move it to a local disk",
    ),
    "sparse files": (
        _sparse_files,
        WARN,
        "reading and building work here; a new store takes all its room, and the time for it, at "
        "once",
    ),
    "fdatasync": (
        _fdatasync,
        FAIL,
        "reading a store works here; building one stops at its first commit: build on a local disk",
    ),
}
