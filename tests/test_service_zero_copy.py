"""Rows in the page cache go from file to socket in the kernel; others are read by a thread. A
client notices nothing."""

import errno
import os
import socket
import struct
import time
from http.client import IncompleteRead
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
import pytest
from served import serving, write_served

from featurestore import FeatureStore
from service.answers import file_bytes
from service.connection import zero_copy

ROW = "/v1/stores/features/rows/@3/1"


@pytest.fixture(params=["h5", "zarr"])
def store(request, tmp_path):
    return FeatureStore.open(write_served(tmp_path, request.param))


def read(url: str, **headers: str) -> bytes:
    with urlopen(Request(url, headers=headers)) as answer:
        return answer.read()


def refuse(*_):
    raise AssertionError("not this way")


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "cold"])
@pytest.mark.parametrize("chunk", [64, 1 << 20], ids=["many chunks", "one chunk"])
def test_a_row_comes_whole_either_way(store, monkeypatch, cached, chunk):
    monkeypatch.setattr(file_bytes, "ZERO_COPY_BYTES", chunk)
    monkeypatch.setattr(file_bytes, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(file_bytes, "is_cached", lambda *_: cached)
    monkeypatch.setattr(
        *((file_bytes, "_pread") if cached else (zero_copy.ZeroCopyProtocol, "_send_file")), refuse
    )
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
        socket.create_connection(("127.0.0.1", urlsplit(url).port), 10) as client,
    ):
        client.sendall(ask + ask)  # pipelined, too
        got, n_bytes = b"", store.patches[3, 1].nbytes
        while len(got.split(b"\r\n\r\n", 2)[-1]) < n_bytes or got.count(b"200 OK") < 2:
            got += (part := client.recv(1 << 16))
            assert part, "closed early"
    assert got.count(store.patches[3, 1].tobytes()) == 2


def test_where_the_kernel_cannot_send_a_file_it_is_read(store, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.EINVAL, "no such system call here")

    monkeypatch.setattr(file_bytes, "is_cached", lambda *_: True)
    monkeypatch.setattr(os, "sendfile", unsupported)
    with serving(store.path) as url:
        assert read(url + ROW) == store.patches[3, 1].tobytes()
        assert len(read(url + ROW, Range="bytes=0-1,7-9")) > 5


def test_a_client_that_goes_just_before_a_part_is_sent_is_no_failure(store, monkeypatch, capfd):
    def go(*_):
        client.close()
        raise BrokenPipeError(errno.EPIPE, "the client has gone")

    monkeypatch.setattr(file_bytes, "is_cached", lambda *_: True)
    with (
        serving(store.path) as url,
        socket.create_connection(("127.0.0.1", urlsplit(url).port), 10) as client,
    ):
        # closing resets the connection
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        monkeypatch.setattr(os, "sendfile", go)
        client.sendall(b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % ROW.encode())
        time.sleep(0.2)
        assert client.fileno() == -1 and b"ok" in read(url + "/healthz")
    assert capfd.readouterr().err == ""


def test_a_file_cut_while_it_is_sent_ends_the_connection_early(store, monkeypatch, capfd):
    path = store.layout.extents["patches"].locate(3 * 2 + 1)[0]
    cached = file_bytes.is_cached

    def cut(fd, offset, n_bytes):
        os.truncate(path, offset + n_bytes // 2)
        return True

    monkeypatch.setattr(file_bytes, "is_cached", cut)
    with serving(store.path) as url:
        with pytest.raises(IncompleteRead):
            read(url + ROW)
        monkeypatch.setattr(file_bytes, "is_cached", cached)
        assert b"ok" in read(url + "/healthz")
    assert capfd.readouterr().err == f"error: GET {ROW}: a file was cut while it was sent\n"


def test_a_client_that_takes_nothing_is_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(zero_copy, "TAKE_S", 0.3)
    monkeypatch.setattr(file_bytes, "_pread", refuse)
    large = write_served(tmp_path, "h5")
    os.truncate(large, 1 << 30)  # a hole: more than buffers of sockets hold, and no byte on disk
    with (
        serving(large) as url,
        socket.create_connection(("127.0.0.1", urlsplit(url).port), 20) as client,
    ):
        monkeypatch.setattr(file_bytes, "is_cached", lambda *_: True)
        client.sendall(b"GET /v1/stores/features/file HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        time.sleep(1)
        with pytest.raises(ConnectionResetError):
            while client.recv(1 << 20):
                pass
            raise ConnectionResetError  # closed without a reset is dropped too
        assert read(url + "/healthz")
