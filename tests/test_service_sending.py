"""Rows come whole, in parts or at once, and the connection goes on after them."""

import os
import socket
import struct
import threading
from http.client import IncompleteRead
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import pytest
from served import serving, write_served

from featurestore import FeatureStore
from service.answers import file_bytes

ROW = "/v1/stores/features/rows/@3/1"


@pytest.fixture(params=["h5", "zarr"])
def store(request, tmp_path):
    return FeatureStore.open(write_served(tmp_path, request.param))


def read(url: str, **headers: str) -> bytes:
    with urlopen(Request(url, headers=headers)) as answer:
        return answer.read()


@pytest.mark.parametrize("chunk", [64, 1 << 20], ids=["many chunks", "one chunk"])
def test_a_row_comes_whole(store, monkeypatch, chunk):
    monkeypatch.setattr(file_bytes, "CHUNK_BYTES", chunk)
    row = store.patches[3, 1]
    with serving(store.path) as url:
        assert read(url + ROW) == row.tobytes()
        assert read(url + ROW, Range="bytes=5-104") == row.tobytes()[5:105]
        several = read(url + ROW, Range="bytes=0-1,7-9")
        assert row.tobytes()[:2] in several and row.tobytes()[7:10] in several
        np.testing.assert_array_equal(
            np.frombuffer(read(url + ROW + "?tokens=cls"), "<f2"), store["ID003"].cls(1).ravel()
        )


def test_a_connection_goes_on_after_a_row(store):
    ask = b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % ROW.encode()
    with (
        serving(store.path) as url,
        socket.create_connection(("127.0.0.1", urlsplit(url).port), 60) as client,
    ):
        client.sendall(ask + ask)  # pipelined, too
        got, n_bytes = b"", store.patches[3, 1].nbytes
        while len(got.split(b"\r\n\r\n", 2)[-1]) < n_bytes or got.count(b"200 OK") < 2:
            got += (part := client.recv(1 << 16))
            assert part, "closed early"
    assert got.count(store.patches[3, 1].tobytes()) == 2


def test_a_client_that_goes_while_a_part_is_read_is_no_failure(store, monkeypatch, capfd):
    pread, gone = file_bytes._pread, threading.Event()

    def go(fd, span):
        client.close()
        gone.set()
        return pread(fd, span)

    with (
        serving(store.path) as url,
        socket.create_connection(("127.0.0.1", urlsplit(url).port), 60) as client,
    ):
        # closing resets the connection
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        monkeypatch.setattr(file_bytes, "_pread", go)
        client.sendall(b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % ROW.encode())
        assert gone.wait(60) and b"ok" in read(url + "/healthz")
    assert capfd.readouterr().err == ""


def test_a_file_cut_while_it_is_sent_ends_the_connection_early(store, monkeypatch, capfd):
    path = store.layout.extents["patches"].locate(3 * 2 + 1)[0]
    pread = file_bytes._pread

    def cut(fd, span):
        os.truncate(path, span.offset + span.n_bytes // 2)
        return pread(fd, span)

    monkeypatch.setattr(file_bytes, "_pread", cut)
    with serving(store.path) as url:
        with pytest.raises(IncompleteRead):
            read(url + ROW)
        assert b"ok" in read(url + "/healthz")
    assert capfd.readouterr().err == f"error: GET {ROW}: a file was cut while it was sent\n"
