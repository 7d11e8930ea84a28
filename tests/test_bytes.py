"""Checksums: of parts put together, of many rows at once."""

import numpy as np
from google_crc32c import value
from hypothesis import given
from hypothesis import strategies as st

from featurestore._bytes import crc32c, crc32c_append, crc32c_rows


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
    assert crc32c_rows(x, y, start_N=start_N).tolist() == [crc32c(x[i], y[i], start=i) for i in range(5)]
