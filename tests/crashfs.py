"""A disk that loses power: what a build asked of it is recorded, and played again up to any point,
what was not synced in doubt.

The model is SQLite's (test6.c): of what was written since the last sync of a file, each sector of
512 bytes may be there, or an older version of it; names that entered or left a folder since its
last sync may or may not have.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from featurestore.format import hdf5, zarr

SECTOR = 512
RECORDED = ("pwritev", "ftruncate", "fdatasync", "fsync", "replace", "unlink")


class Recorder:
    """Operations on the files below a folder, each with the inode it is about; files named
    NAME.lock are left out."""

    def __init__(self, folder: Path) -> None:
        self.root = os.stat(folder).st_ino
        self.operations: list[tuple] = []
        self._known = {self.root}
        self.is_paused = False
        """While zarr-python writes its metadata, by calls of its own: what it left is taken
        afterwards."""
        self.snapshot(folder)
        self.sync_all()

    def snapshot(self, path: Path) -> None:
        """Note what came to be at a path without being asked for here: written by libhdf5 or
        zarr-python, nothing synced."""
        for each in [path, *sorted(path.rglob("*"))] if path.is_dir() else [path]:
            found = os.stat(each)
            if found.st_ino not in self._known and each.suffix != ".lock":
                self._known.add(found.st_ino)
                self._add(
                    "enter",
                    os.stat(each.parent).st_ino,
                    each.name,
                    found.st_ino,
                    stat.S_ISDIR(found.st_mode),
                )
                if each.is_file():
                    self._add("write", found.st_ino, 0, each.read_bytes())

    def sync_all(self) -> None:
        for inode in sorted(self._known):
            self._add("sync", inode)

    def mark(self, images: list[int]) -> None:
        """These images were acknowledged."""
        self._add("acknowledged", tuple(images))

    def _add(self, *operation) -> None:
        self.operations.append(operation)

    def pwritev(self, fd, buffers, offset) -> None:
        if (inode := os.fstat(fd).st_ino) in self._known:
            self._add("write", inode, offset, b"".join(bytes(buffer) for buffer in buffers))

    def ftruncate(self, fd, size) -> None:
        if (inode := os.fstat(fd).st_ino) in self._known:
            self._add("size", inode, size)

    def fsync(self, fd) -> None:
        if (inode := os.fstat(fd).st_ino) in self._known:
            self._add("sync", inode)

    fdatasync = fsync

    def replace(self, old, new) -> None:
        folder = os.stat(Path(old).parent).st_ino
        assert folder == os.stat(Path(new).parent).st_ino, "renamed out of its folder"
        self._add("rename", folder, Path(old).name, Path(new).name)

    def unlink(self, path, dir_fd=None) -> None:
        folder = (
            os.fstat(dir_fd).st_ino if dir_fd is not None else os.stat(Path(path).parent).st_ino
        )
        self._add("leave", folder, Path(path).name)


@contextmanager
def recorded(folder: Path, monkeypatch) -> Iterator[Recorder]:
    """Record what is done below a folder; what is there now counts as durable."""
    recorder = Recorder(folder)

    def noted(call, note):
        def wrapper(*args, **kwargs):
            if not recorder.is_paused:
                # before the call: what it is about may have another name afterwards
                note(*args, **kwargs)
            return call(*args, **kwargs)

        return wrapper

    def snapshotted(create):
        def wrapper(path, *args):
            recorder.is_paused = True
            layout = create(path, *args)
            recorder.is_paused = False
            recorder.snapshot(path)
            return layout

        return wrapper

    with monkeypatch.context() as patch:
        for name in RECORDED:
            patch.setattr(os, name, noted(getattr(os, name), getattr(recorder, name)))
        for module in (hdf5, zarr):
            patch.setattr(module, "create", snapshotted(module.create))
        yield recorder


class Disk:
    """What a disk holds after some operations: by inode, what is durable and what is in doubt."""

    def __init__(self, operations: list[tuple]) -> None:
        self.durable: dict[int, bytes | dict] = {}
        self.pending: dict[int, list[tuple]] = {}
        self.acknowledged: set[int] = set()
        self.root = operations[0][1]
        self.durable[self.root] = {}
        for name, *operation in operations:
            getattr(self, f"_{name}")(*operation)

    def _enter(self, folder: int, name: str, inode: int, is_folder: bool) -> None:
        self.durable[inode] = {} if is_folder else b""
        self._doubt(folder, "enter", name, inode)

    def _rename(self, folder: int, old: str, new: str) -> None:
        self._doubt(folder, "rename", new, self._names(folder)[old], old)

    def _leave(self, folder: int, name: str) -> None:
        self._doubt(folder, "leave", name)

    def _write(self, inode: int, offset: int, data: bytes) -> None:
        self._doubt(inode, "write", offset, data)

    def _size(self, inode: int, size: int) -> None:
        self._doubt(inode, "size", size)

    def _acknowledged(self, images: tuple[int, ...]) -> None:
        self.acknowledged.update(images)

    def _sync(self, inode: int) -> None:
        if isinstance(self.durable.get(inode), dict):
            self.durable[inode] = self._names(inode)
        elif inode in self.durable:
            self.durable[inode] = self._versions(inode)[-1]
        self.pending.pop(inode, None)

    def _doubt(self, inode: int, *operation) -> None:
        self.pending.setdefault(inode, []).append(operation)

    def _names(self, folder: int, keep=lambda: True) -> dict[str, int]:
        """Entries of a folder after those pending operations that `keep` keeps."""
        names = dict(self.durable[folder])
        for kind, name, *rest in self.pending.get(folder, []):
            if keep():
                if kind != "enter":
                    names.pop(rest[1] if kind == "rename" else name, None)
                if kind != "leave":
                    names[name] = rest[0]
        return names

    def _versions(self, inode: int) -> list[bytes]:
        """Contents of a file: the durable one, and after each pending operation."""
        versions = [self.durable[inode]]
        for kind, *rest in self.pending.get(inode, []):
            now = versions[-1]
            if kind == "size":
                versions.append(now[: rest[0]].ljust(rest[0], b"\0"))
            else:
                offset, data = rest
                versions.append(
                    now[:offset].ljust(offset, b"\0") + data + now[offset + len(data) :]
                )
        return versions

    def crash(self, into: Path, rng: np.random.Generator, kept: float) -> None:
        """Lay out, below a new folder, one of the disks that may be found after the power is back.

        kept : share of what is in doubt that is there; 0: none of it, 1: all of it, in between each
            by a draw of its own.
        """
        into.mkdir()
        self._lay_out(self.root, into, rng, kept)

    def _lay_out(self, folder: int, into: Path, rng: np.random.Generator, kept: float) -> None:
        for name, inode in self._names(folder, lambda: rng.random() < kept).items():
            if isinstance(self.durable[inode], dict):
                (into / name).mkdir()
                self._lay_out(inode, into / name, rng, kept)
            else:
                (into / name).write_bytes(self._drawn(inode, rng, kept))

    def _drawn(self, inode: int, rng: np.random.Generator, kept: float) -> bytes:
        versions = self._versions(inode)
        if len(versions) == 1 or kept in (0, 1):
            return versions[-1 if kept else 0]
        size = len(versions[rng.integers(len(versions))])
        padded = np.stack([np.frombuffer(v[:size].ljust(size, b"\0"), np.uint8) for v in versions])
        drawn = padded[-1].copy()
        in_doubt = np.flatnonzero((padded != padded[0]).any(0)) // SECTOR
        for start in SECTOR * np.unique(in_doubt):
            if rng.random() >= kept:
                drawn[start : start + SECTOR] = padded[
                    rng.integers(len(versions) - 1), start : start + SECTOR
                ]
        return drawn.tobytes()
