"""What this process may use: memory and CPUs.

Less than the machine has where a cgroup limits it, as in most containers.

Of the standard library alone, for `doctor` must run where nothing else loads.
"""

import ctypes
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from featurestore.errors import MemoryShortError

PROC = Path("/proc")
MEMORY, CPU = "memory", "cpu"
NO_LIMIT = 1 << 60  # cgroup v1 writes "no limit" as nearly 2 ** 63
UNRECLAIMABLE = ("anon", "shmem"), ("total_rss", "total_shmem")  # of memory.stat, v2 and v1


@dataclass(frozen=True)
class Memory:
    """Memory that this process may still take, and what sets that bound, in words."""

    n_bytes: int
    bound: str

    def __str__(self) -> str:
        return f"{self.n_bytes / 1e9:.3g} GB ({self.bound})"


def usable_memory(proc: Path = PROC) -> Memory:
    """The least of MemAvailable and what is left of each memory limit.

    Limits are those of this process's cgroup and of all above it, up to its mount's root.

    Of a limit so much is left as no anonymous memory and no tmpfs takes; page cache does not count,
    since the kernel drops it. cgroup v1 and v2. proc : where procfs is mounted.

    Source: cgroups(7); the kernel's admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
    """
    available = meminfo(proc).get("MemAvailable")
    bounds = [] if available is None else [Memory(available, "available by /proc/meminfo")]
    for folder in cgroups(MEMORY, proc):
        limit = _first_number(folder / "memory.max", folder / "memory.limit_in_bytes")
        if limit is None or limit >= NO_LIMIT:
            continue
        taken = _unreclaimable(folder)
        bound = (
            f"memory limit of {limit / 1e9:.3g} GB in {folder}, {taken / 1e9:.3g} GB of it taken"
        )
        bounds.append(Memory(max(0, limit - taken), bound))
    unknown = Memory(NO_LIMIT, "no bound is known")
    return min(bounds, key=lambda memory: memory.n_bytes, default=unknown)


def give_back_freed_memory() -> None:
    """Let the kernel have what was freed, of which glibc keeps some in each thread's heap.

    Does nothing where the C library has no malloc_trim.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def check_memory(need: int, what: str, advice: str, proc: Path = PROC) -> None:
    """MemoryShortError if `what` needs more main memory than this process may use.

    need : bytes. advice : what to do then.
    """
    usable = usable_memory(proc)
    if need > usable.n_bytes:
        raise MemoryShortError(
            f"{what} needs {need / 1e9:.3g} GB of memory, usable are {usable}; {advice}"
        )


def usable_cpus(proc: Path = PROC) -> int:
    """CPUs of this process's affinity, or the least quota of its cgroups; at least 1.

    Quotas are rounded down.
    """
    n_allowed = len(os.sched_getaffinity(0))
    quotas = [_quota(folder) for folder in cgroups(CPU, proc)]
    least = min([n_allowed, *quotas])
    return max(1, int(least))


def meminfo(proc: Path = PROC) -> dict[str, int]:
    """The fields of /proc/meminfo that are sizes, in bytes."""
    lines = re.findall(r"^(\w+):\s*(\d+) kB", read(proc / "meminfo"), re.M)
    return {name: 1024 * int(number) for name, number in lines}


def cgroups(controller: str, proc: Path = PROC) -> Iterator[Path]:
    """Folders of this process's cgroup and of those above it, up to the mount's root.

    Of each hierarchy that has the controller.

    Where /proc/self/cgroup names no folder below a mount, as in a container that does not see its
    own path, the mount's root.
    """
    mounted = mounts(read(proc / "self/mountinfo"))
    for line in filter(None, read(proc / "self/cgroup").split("\n")):  # number:controllers:path
        _, controllers, path = line.split(":", 2)
        if not controllers:  # so version 2 writes its one hierarchy
            mine = [mount for mount in mounted if mount.kind == "cgroup2"]
        elif controller in controllers.split(","):
            first = [mount for mount in mounted if mount.kind == "cgroup"]
            mine = [mount for mount in first if controller in mount.super_options.split(",")]
        else:
            continue
        for mount in mine:
            yield from _up_to_root(mount, path)


def _up_to_root(mount: "Mount", path: str) -> Iterator[Path]:
    root = Path(mount.point)
    folder = root
    # os.path.relpath would take "/.." for "/", but it is a cgroup above the namespace's root
    if ".." not in PurePosixPath(path).parts and PurePosixPath(path).is_relative_to(mount.root):
        inner = root / PurePosixPath(path).relative_to(mount.root)
        folder = inner if inner.is_dir() else root
    yield folder
    while folder != root:
        folder = folder.parent
        yield folder


def _unreclaimable(folder: Path) -> int:
    """Bytes of a cgroup and those below it that the kernel cannot take back without swap."""
    found = re.findall(r"^(\w+) (\d+)$", read(folder / "memory.stat"), re.M)
    stat = {name: int(number) for name, number in found}
    names = next((names for names in UNRECLAIMABLE if names[0] in stat), ())
    return sum(stat.get(name, 0) for name in names)


def _quota(folder: Path) -> float:
    """CPUs' worth of time that a cgroup may use; infinite without a quota."""
    # cgroup v2 has quota and period in one file, v1 in two
    if both := re.fullmatch(r"(\d+) (\d+)", read(folder / "cpu.max").strip()):
        return int(both[1]) / int(both[2])
    quota = _first_number(folder / "cpu.cfs_quota_us")
    period = _first_number(folder / "cpu.cfs_period_us")
    return quota / period if quota and period else float("inf")


def _first_number(*files: Path) -> int | None:
    """Of the first file that holds one; "max" and -1, which say no limit, are none."""
    texts = [read(file).strip() for file in files]
    return next((int(text) for text in texts if text.isdecimal()), None)


@dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo (proc_pid_mountinfo(5))."""

    root: str
    point: str
    options: str
    kind: str
    source: str
    super_options: str


def mounts(mountinfo: str) -> list[Mount]:
    """What is mounted, in the order of mounting."""
    found = []
    for line in filter(None, mountinfo.split("\n")):  # a path may hold other breaks of lines
        left, right = (part.split() for part in line.split(" - ", 1))
        super_options = right[2] if len(right) > 2 else ""
        fields = [*left[3:6], *right[:2], super_options]
        # blanks are written as \040
        unescaped = []
        for field in fields:
            unescaped.append(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), field))
        found.append(Mount(*unescaped))
    return found


def read(path: str | Path) -> str:
    """The text of a file of the kernel's; empty where this kernel or container has none."""
    try:
        return Path(path).read_bytes().decode(errors="surrogateescape")
    except OSError:
        return ""
