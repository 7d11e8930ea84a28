"""Checksums of parts put together and of many rows at once; reads and writes that the kernel does
in parts."""

import os

import numpy as np
import pytest
from google_crc32c import value
from hypothesis import given
from hypothesis import strategies as st

from featurestore.disk.durable import crc32c, crc32c_append, crc32c_rows, pread_into, pwrite
from featurestore.errors import StoreDamaged


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_the_crc_of_two_parts_comes_from_theirs(a, b):
    assert crc32c_append(len(b))(value(a), value(b)) == value(a + b)


def test_also_for_a_part_of_full_size():
    tokens = np.random.default_rng(0).integers(0, 1 << 16, 3600 * 1280, np.uint16)
    assert crc32c_append(tokens.nbytes)(value(b"cls"), crc32c(tokens)) == crc32c(b"cls", tokens)


def test_rows_are_summed_one_by_one_from_where_each_begins():
    x = np.arange(60, dtype=np.float32).reshape(5, 3, 4)
    y = np.arange(40, dtype=np.float16).reshape(10, 4)[::2]  # rows that are no block of memory
    start_N = np.arange(5, dtype=np.uint32)
    assert crc32c_rows(x, y, start_N=start_N).tolist() == [
        crc32c(x[i], y[i], start=i) for i in range(5)
    ]


# -- calls of the kernel that do a part of what they are asked


def test_all_bytes_are_written_by_a_kernel_that_takes_few_at_a_time(tmp_path, monkeypatch):
    pwritev, sizes = os.pwritev, iter([1, 4, 3, 2] * 100)

    def short(fd, views, offset):
        return pwritev(fd, [views[0][: next(sizes)]], offset)

    monkeypatch.setattr(os, "pwritev", short)
    parts = [np.arange(5, dtype=np.int32), b"seven b", np.arange(6, dtype=np.float16).reshape(2, 3)]
    with open(tmp_path / "f", "w+b") as file:
        pwrite(file.fileno(), parts, 3)
    expected = b"".join(bytes(part) for part in parts)
    assert (tmp_path / "f").read_bytes() == bytes(3) + expected


def test_a_buffer_that_ends_where_the_kernel_stopped_is_not_written_again(tmp_path, monkeypatch):
    pwritev = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, views, offset: pwritev(fd, views[:2], offset))
    with open(tmp_path / "f", "w+b") as file:
        pwrite(file.fileno(), [b"ab", b"cd", b"ef", b"gh", b"i"], 0)
    assert (tmp_path / "f").read_bytes() == b"abcdefghi"


def test_a_buffer_is_filled_by_a_kernel_that_gives_few_bytes_at_a_time(tmp_path, monkeypatch):
    preadv, sizes = os.preadv, iter([1, 5, 2] * 100)
    (tmp_path / "f").write_bytes(bytes(range(100)))
    monkeypatch.setattr(
        os, "preadv", lambda fd, views, offset: preadv(fd, [views[0][: next(sizes)]], offset)
    )
    buffer = np.zeros((4, 5), np.uint8)
    with open(tmp_path / "f", "rb") as file:
        pread_into(file.fileno(), buffer, 7)
        assert buffer.tobytes() == bytes(range(7, 27))
        with pytest.raises(StoreDamaged, match="file ends at byte 100, 10 more were expected"):
            pread_into(file.fileno(), buffer, 90)
