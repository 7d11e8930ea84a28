"""Whether somebody holds a lock, without taking it: that, were it for a moment, would turn its
owner away."""

import json
import os
import socket
from pathlib import Path

LOCKS = Path("/proc/locks")  # of this machine, see proc_locks(5)


def is_held(path: Path) -> bool | None:
    """Whether a process holds the lock of `path` (durable.locked).

    None where that cannot be told: it was taken on another machine, or the kernel has no list.
    """
    path = Path(os.path.realpath(path))
    lock = path.with_name(path.name + ".lock")
    try:
        file = os.stat(lock)
        holder = _holder(lock.read_text(errors="replace"))
        lines = LOCKS.read_text().splitlines()
    except FileNotFoundError as err:
        return None if err.filename == str(LOCKS) else False
    except OSError:
        return None
    if holder.get("host", socket.gethostname()) != socket.gethostname():
        return None
    device = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}"
    for line in lines:
        # 1: FLOCK  ADVISORY  WRITE 5951 fe:00:2221074 0 EOF; one that waits has an arrow
        fields = line.split()
        if len(fields) < 6 or fields[1] == "->":
            continue
        pid = fields[4]
        place, _, inode = fields[5].rpartition(":")
        # some file systems (btrfs, overlays) tell another device there than stat does
        is_there = place == device or pid == str(holder.get("pid"))
        if is_there and inode == str(file.st_ino):
            return True
    return False


def _holder(text: str) -> dict:
    """Who holds it, or held it last, as `locked` writes it."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
