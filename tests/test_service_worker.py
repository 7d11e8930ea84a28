"""What must be computed is answered by a process of its own: the same answers, and the server lives
whatever happens to it."""

import asyncio
import errno
import gzip
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
from collections import Counter
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from conftest import tiny_frame, tiny_spec
from served import ROOT, TOKEN, client_of, started, wait_for, worker_of, write_served

from featurestore.write.writer import open_writer
from service.errors import ServiceError
from service.library import Library
from service.relay import Relay

S = "/v1/stores/features"
STORE = [
    "catalog.json",
    "catalog.csv?limit=2",
    "catalog.xml",
    "stats.json",
    "overview.json",
    "odd.csv",
    "map.json?view=hflip",
    "map.json?method=x",
]
IMAGES = [
    "@0",
    "@0/nearest.csv",
    "@0/predictions.json",
    "@0/views.csv",
    "@0/thumb.jpg",
    "@0/photograph.jpg",
    "@1/pca.png",
    "@1/norms.json?view=1",
    "@1/similar.json?patch=1,2",
    "@1/similar.json",
    "no%20such%2Fone",
    "@4",
]
COMPUTED = [
    *(f"{S}/{below}" for below in STORE),
    *(f"{S}/images/{below}" for below in IMAGES),
    "/v1/sweeps/none",
]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """Five images, of which the last is not sealed."""
    return write_served(tmp_path_factory.mktemp("served"), "h5", seal=4)


@pytest.fixture(scope="module")
def server(path):
    with started(path, "--no-token") as (process, said):
        yield process, said["port"]


@contextmanager
def asking(port: int, address: str, method: str = "GET"):
    """An answer of which nothing but the head was read."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, address)
        yield connection.getresponse()
    finally:
        connection.close()


def ask(port: int, address: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    with asking(port, address, method) as answer:
        return (
            answer.status,
            {name.lower(): value for name, value in answer.getheaders()},
            answer.read(),
        )


def once_it_is_back(port: int, address: str) -> tuple[int, dict[str, str], bytes]:
    """As `ask`; a worker that was killed may take one more request before it is gone, and starts
    once a second."""
    return wait_for(lambda: (answer := ask(port, address))[0] != 503 and answer)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("address", COMPUTED)
def test_its_answers_are_the_application_s_own(server, path, address, method):
    expected = client_of(path).request(method, address, headers={"Accept-Encoding": "identity"})
    status, headers, body = ask(server[1], address, method)
    assert (status, body) == (expected.status_code, expected.content)
    of_server = {"date", "transfer-encoding", "connection"}
    assert {k: v for k, v in headers.items() if k not in of_server} == dict(
        expected.headers.items()
    )


def test_it_compresses_for_who_accepts_that(server):
    connection = http.client.HTTPConnection("127.0.0.1", server[1], timeout=30)
    with closing(connection):
        connection.request("GET", f"{S}/catalog.json", headers={"Accept-Encoding": "gzip"})
        answer = connection.getresponse()
        assert answer.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(answer.read()) == ask(server[1], f"{S}/catalog.json")[2]


def test_the_document_tells_the_same_of_all_addresses(server, path):
    assert (
        json.loads(ask(server[1], "/openapi.json")[2])
        == client_of(path).get("/openapi.json").json()
    )


def test_a_long_table_comes_whole(tmp_path):
    frame = tiny_frame(30_000).assign(Note="n" * 400)
    with open_writer(tmp_path / "features.h5", tiny_spec(frame), frame):
        pass
    with started(tmp_path / "features.h5", "--no-token") as (process, said):
        status, _, body = ask(
            said["port"], f"{S}/catalog.json?limit=100000&columns=image_id,sealed"
        )
        assert status == 200 and json.loads(body)["rows"] == [
            [image_id, False] for image_id in frame["image_id"]
        ]
        # 15 MB: what lies between, the kernel's 4 MB above all, cannot hold them
        with asking(said["port"], f"{S}/catalog.json?limit=100000") as answer:
            os.kill(worker_of(process), signal.SIGKILL)
            with pytest.raises(http.client.IncompleteRead):
                answer.read()
        assert once_it_is_back(said["port"], f"{S}/catalog.csv?limit=1")[0] == 200
        process.terminate()
        assert "the worker's answer ended early" in process.stderr.read()


def test_s09_what_is_read_is_answered_while_it_computes(server):
    process, port = server
    os.kill(worker_of(process), signal.SIGSTOP)  # a computation that holds the interpreter's lock
    try:
        waiting = [http.client.HTTPConnection("127.0.0.1", port, timeout=30) for _ in range(300)]
        for connection in waiting:
            connection.request("GET", f"{S}/stats.json")
        for address in (
            "/healthz",
            "/",
            "/v1/stores",
            S,
            f"{S}/rows/@0/0",
            f"{S}/zarr/zarr.json",
            "/metrics",
        ):
            assert ask(port, address)[0] == 200
        assert b"\nbiomass_worker_requests_now 128.0\n" in ask(port, "/metrics")[2]
        for connection in waiting[:64]:
            connection.close()  # who goes makes room
        wait_for(lambda: b"\nbiomass_worker_requests_now 64.0\n" in ask(port, "/metrics")[2])
    finally:
        os.kill(worker_of(process), signal.SIGCONT)
    answers = Counter(connection.getresponse().status for connection in waiting[64:])
    assert answers == {200: 64, 503: 172}
    for connection in waiting:
        connection.close()


def test_it_is_started_again_when_it_ended(tmp_path):
    kept, gone = write_served(tmp_path, "h5"), write_served(tmp_path, "zarr")
    with started(kept, gone, "--no-token") as (process, said):
        first, port = worker_of(process), said["port"]
        os.kill(first, signal.SIGSTOP)
        cut = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        cut.request("GET", f"{S}/stats.json")
        wait_for(lambda: b"\nbiomass_worker_requests_now 1.0\n" in ask(port, "/metrics")[2])
        gone.rename(tmp_path / "elsewhere")
        os.kill(first, signal.SIGKILL)
        answer = cut.getresponse()
        assert answer.status == 503 and answer.headers["Retry-After"]
        assert json.load(answer)["error"]["kind"] == "busy"
        cut.close()
        assert once_it_is_back(port, f"{S}/stats.json")[0] == 200 and worker_of(process) != first
        status, _, body = ask(port, f"{S}-2/stats.json")
        assert (status, json.loads(body)["error"]["kind"]) == (503, "store-gone")
        (tmp_path / "elsewhere").rename(gone)
        assert ask(port, f"{S}-2/stats.json")[0] == 200
        assert b"\nbiomass_worker_starts_total 2.0\n" in ask(port, "/metrics")[2]
        process.terminate()
        assert "(signal 9) and is started again" in process.stderr.read()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_when_the_server_does(path, how):
    with started(path) as (process, _):
        worker = worker_of(process)
        process.send_signal(how)
        process.wait(25)
        wait_for(lambda: _has_ended(worker))


def _has_ended(pid: int) -> bool:
    try:
        # nobody may be there to bury it
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_it_is_of_the_server_s_own_package_and_knows_no_token(path, tmp_path, monkeypatch):
    for name in ("featurestore", "trainer", "service"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "cli.py", tmp_path)
    relay = tmp_path / "service/relay.py"
    relay.write_text(relay.read_text().replace('HOST = "worker"', 'HOST = "another"'))
    monkeypatch.setattr("served.ROOT", tmp_path)
    monkeypatch.setenv("BIOMASS_TOKEN", TOKEN)
    with started(path, "--no-token") as (process, said):
        assert ask(said["port"], f"{S}/stats.json")[0] == 200
        assert TOKEN.encode() not in Path(f"/proc/{worker_of(process)}/environ").read_bytes()


def test_a_start_that_fails_is_tried_again(path, monkeypatch):
    def no_more(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    def kill(relay):
        os.kill(relay.pid, signal.SIGKILL)
        relay._process.wait()  # for all of its threads

    async def ask_all(relay):
        found = [await status_of(relay)]
        kill(relay)
        monkeypatch.setattr("service.relay.PAUSE_S", 0)
        for module, name in ((subprocess, "Popen"), (socket, "socketpair")):
            with monkeypatch.context() as patch:
                patch.setattr(module, name, no_more)
                found.append(await status_of(relay))
        found.append(await status_of(relay))
        kill(relay)
        monkeypatch.setattr("service.relay.PAUSE_S", 3600)
        return [*found, await status_of(relay)]  # not again so soon

    with closing(Relay(Library([path]))) as relay:
        ended = "the worker, which computes answers, has ended and is started again"
        assert asyncio.run(ask_all(relay)) == [
            "200",
            ended,
            "too many connections are open",
            "200",
            ended,
        ]
        assert relay.n_starts == 2


async def status_of(relay: Relay) -> str:
    """Of an answer of the worker; the message if it is busy."""
    try:
        connection = relay.connect()
    except ServiceError as err:
        return err.message
    reader, writer = await asyncio.open_unix_connection(sock=connection)
    writer.write(b"GET /v1/stores HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer[9:12].decode()
