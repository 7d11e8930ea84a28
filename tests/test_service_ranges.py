"""Parts of a body: ranges, several of them, and conditions."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from served import client_of, error_of, write_served

from service.answers.file_bytes import Span, Zeros, cut
from service.answers.ranges import requested_ranges
from service.errors import ServiceError

ROW = "/v1/stores/features/rows/@0/0"


@pytest.fixture(scope="module", params=["h5", "zarr"])
def client(request, tmp_path_factory):
    return client_of(write_served(tmp_path_factory.mktemp("served"), request.param))


@pytest.mark.parametrize(
    "header, part",
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=3-", slice(3, None)),
        ("bytes=-5", slice(-5, None)),
        ("bytes=10-99999", slice(10, None)),
        ("bytes=-99999", slice(None)),
    ],
)
def test_one_range(client, header, part):
    whole, answer = client.get(ROW).content, client.get(ROW, headers={"Range": header})
    assert (answer.status_code, answer.content) == (206, whole[part])
    first = (part.start or 0) % len(whole)
    assert (
        answer.headers["Content-Range"]
        == f"bytes {first}-{first + len(answer.content) - 1}/{len(whole)}"
    )


def test_several_ranges_are_parts_of_one_answer(client):
    whole, answer = (
        client.get(ROW).content,
        client.get(ROW, headers={"Range": "bytes=2-4, 10-20,-3"}),
    )
    boundary = answer.headers["Content-Type"].removeprefix("multipart/byteranges; boundary=")
    parts = re.split(rb"(?:\r\n)?--" + boundary.encode() + rb"(?:--)?\r\n", answer.content)[1:-1]
    assert [part.split(b"\r\n\r\n", 1)[1] for part in parts] == [
        whole[2:5],
        whole[10:21],
        whole[-3:],
    ]
    assert int(answer.headers["Content-Length"]) == len(answer.content)


@pytest.mark.parametrize(
    "header", ["bytes=99999-", "bytes=-0", "bytes=" + ",".join(["0-1"] * 17), "bytes=0-,0-"]
)
def test_ranges_that_cannot_be_had(client, header):
    answer = client.get(ROW, headers={"Range": header})
    assert error_of(answer) == (416, "range")
    assert answer.headers["Content-Range"] == f"bytes */{len(client.get(ROW).content)}"


@pytest.mark.parametrize(
    "header",
    ["lines=0-1", "bytes=5-3", "bytes=a-b", "bytes=-", "bytes=", "nonsense", "bytes=1-2,x"],
)
def test_what_is_no_range_is_passed_over(client, header):
    assert client.get(ROW, headers={"Range": header}).status_code == 200


def test_a_known_etag_gets_no_bytes(client):
    etag = client.get(ROW).headers["ETag"]
    for header in (etag, f'"other", W/{etag}', "*"):
        answer = client.get(ROW, headers={"If-None-Match": header})
        assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", etag)
    assert client.get(ROW, headers={"If-None-Match": '"other"'}).status_code == 200


def test_if_range_of_other_bytes_gets_all(client):
    etag = client.get(ROW).headers["ETag"]
    assert client.get(ROW, headers={"Range": "bytes=0-1", "If-Range": etag}).status_code == 206
    assert client.get(ROW, headers={"Range": "bytes=0-1", "If-Range": '"other"'}).status_code == 200


@given(st.lists(st.integers(0, 9), max_size=5), st.integers(0, 50), st.integers(0, 50))
def test_pieces_are_cut_as_their_bytes_would_be(lengths, a, b):
    pieces = [
        (bytes([65 + i]) * n, Zeros(n), Span(Path("x"), 7, n))[i % 3] for i, n in enumerate(lengths)
    ]

    def filled(some):
        return b"".join(
            p if isinstance(p, bytes) else (b"\0" if isinstance(p, Zeros) else b"x") * p.n_bytes
            for p in some
        )

    assert filled(cut(pieces, a, b)) == filled(pieces)[a : max(a, b)]


@given(st.text("bytes=0123456789-, x", max_size=30), st.integers(0, 100))
def test_no_header_asks_for_what_is_not_there(header, n_bytes):
    try:
        ranges = requested_ranges(header, n_bytes)
    except ServiceError:
        return
    assert ranges is None or all(0 <= a < b <= n_bytes for a, b in ranges)
