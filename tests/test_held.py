"""Whether a lock is held is read without taking it."""

import json
import socket

import pytest

from featurestore.disk import held
from featurestore.disk.durable import locked
from featurestore.disk.held import is_held


def test_a_lock_is_held_as_long_as_its_block(tmp_path):
    path = tmp_path / "sweep"
    assert is_held(path) is False  # nobody ever took it
    with locked(path):
        assert is_held(path) is True
        with pytest.raises(Exception, match="locked by"), locked(path):
            pass
    assert is_held(path) is False
    with locked(path, shared=True):
        assert is_held(path) is True


def test_of_another_machine_s_lock_nothing_is_known(tmp_path):
    lock = tmp_path / "sweep.lock"
    lock.write_text(json.dumps({"pid": 1, "host": f"not-{socket.gethostname()}"}))
    assert is_held(tmp_path / "sweep") is None


def test_nor_where_the_kernel_has_no_list(tmp_path, monkeypatch):
    monkeypatch.setattr(held, "LOCKS", tmp_path / "none")
    with locked(tmp_path / "sweep"):
        assert is_held(tmp_path / "sweep") is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("1: FLOCK  ADVISORY  WRITE {pid} {device}:{inode} 0 EOF", True),
        ("1: FLOCK  ADVISORY  WRITE {pid} ff:ff:{inode} 0 EOF", True),  # as btrfs tells it
        ("1: FLOCK  ADVISORY  WRITE 9 ff:ff:{inode} 0 EOF", False),  # a file of another system
        ("1: -> FLOCK  ADVISORY  WRITE {pid} {device}:{inode} 0 EOF", False),  # one that waits
        ("1: FLOCK  ADVISORY  WRITE {pid} {device}:7{inode} 0 EOF", False),
        ("1: LEASE", False),
    ],
)
def test_lines_of_the_kernel_s_list(tmp_path, monkeypatch, line, expected):
    lock = tmp_path / "sweep.lock"
    lock.write_text(json.dumps({"pid": 8, "host": socket.gethostname()}))
    found = lock.stat()
    device = f"{found.st_dev >> 8 & 0xFFF:02x}:{found.st_dev & 0xFF:02x}"
    text = line.format(pid=8, device=device, inode=found.st_ino)
    (tmp_path / "locks").write_text(f"{text}\n")
    monkeypatch.setattr(held, "LOCKS", tmp_path / "locks")
    assert is_held(tmp_path / "sweep") is expected
