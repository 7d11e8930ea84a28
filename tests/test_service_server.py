"""`biomass store serve` as a process: where it listens, slow and rude clients, how it ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from commands import biomass
from served import serving, started, wait_for, worker_of, write_served

from featurestore.errors import InputError, UsageError
from service.server import listen, names_of, serve

ROOT = Path(__file__).parent.parent
S = "/v1/stores/features"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_served(tmp_path_factory.mktemp("served"), "h5")


def test_s15_s16_it_says_where_it_is_and_ends_well(path):
    with started(path) as (process, said):
        request = urllib.request.Request(
            f"{said['url']}v1/stores", headers={"Authorization": f"Bearer {said['token']}"}
        )
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["stores"][0]["name"] == "features"
        process.send_signal(signal.SIGTERM)
        assert process.wait(25) == 0
        # once, and nothing else
        assert process.stderr.read() == f"{said['url']}?token={said['token']}\n"


def test_s16_connections_that_idle_do_not_hold_up_the_end(path):
    with started(path) as (process, said):
        idle = socket.create_connection(("127.0.0.1", said["port"]))
        half = socket.create_connection(("127.0.0.1", said["port"]))
        half.sendall(b"GET /healthz HTTP/1.1\r\nHost: ")
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0  # not by HEAD_S, which would drop them, too
        idle.close()
        half.close()


def test_s16_clients_that_do_not_take_and_long_computations_do_not_either(tmp_path):
    path = write_served(tmp_path, "h5", n=5, reserve=300_000)
    with started(path, "--no-token") as (process, said):
        os.kill(worker_of(process), signal.SIGSTOP)  # a computation that never ends
        waiting = []
        for below in ("file", "file", "stats.json"):
            waiting.append(socket.create_connection(("127.0.0.1", said["port"])))
            waiting[-1].sendall(f"GET {S}/{below} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        wait_for(lambda: "biomass_worker_requests_now 1.0" in _counts(said["url"].rstrip("/")))
        process.send_signal(signal.SIGTERM)
        answer = _rest(waiting.pop())  # of who waits for the computation
        assert (
            answer.startswith(b"HTTP/1.1 503")
            and b"Retry-After" in answer.title()
            and b"the server ends" in answer
        )
        assert process.wait(25) == 0
        for connection in waiting:
            connection.close()


def test_s15_a_port_that_is_taken_is_one_line(path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = biomass("store", "serve", path, "--port", port, code=3)
    assert (
        result.stderr
        == f"error: 127.0.0.1 port {port}: Address already in use; choose another, or --port 0 for "
        "a free one\n"
    )


def test_s15_ipv6_alone(path):
    try:
        listening = listen("::1", 0)
    except InputError:
        pytest.skip("this machine has no IPv6")
    assert listening.url == f"http://[::1]:{listening.port}/"
    listening.socket.close()


def test_s13_without_a_token_on_all_addresses_only_if_meant(path):
    result = biomass("store", "serve", path, "--host", "0.0.0.0", "--no-token", "--port", 0, code=2)
    assert "--insecure" in result.stderr
    with pytest.raises(UsageError, match="16 or more"):
        serve([path], port=0, token="short")


def test_names_of_other_machines_are_not_ours():
    assert {"127.0.0.1", "localhost", socket.gethostname()} <= set(names_of("0.0.0.0"))
    assert names_of("192.0.2.7") == ("192.0.2.7",)
    with pytest.raises(InputError, match="address of this machine"):
        listen("192.0.2.7", 0)


def test_what_is_not_installed_is_said(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    said = biomass("store", "serve", path, code=3).stderr
    assert said.startswith("error: store serve needs uvicorn") and "`pip install .`" in said


def test_what_is_no_store_or_sweep_is_said(path, tmp_path):
    assert (
        "no such store"
        in biomass("store", "serve", tmp_path / "nix.h5", "--port", 0, code=3).stderr
    )
    assert (
        "sweep.json"
        in biomass("store", "serve", path, "--sweep", tmp_path, "--port", 0, code=3).stderr
    )


def _connected(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def _healthy(url):
    with urllib.request.urlopen(f"{url}/healthz", timeout=60) as answer:
        return answer.status == 200


def _counts(url):
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        return answer.read().decode().splitlines()


def _rest(connection):
    """All that comes until the server closes."""
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    connection.close()
    return received


def test_s07_heads_that_never_end_are_dropped_and_block_nobody(path, monkeypatch):
    monkeypatch.setattr("service.connection.time_limits.HEAD_S", 0.8)
    with serving(path) as url:
        silent = [_connected(url) for _ in range(20)]
        slow = [_connected(url) for _ in range(200)]
        for connection in slow:
            with suppress(ConnectionError):  # a slow machine may be late
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ")
        again = _connected(url)
        again.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):  # head and body may come one by one
            answer += (part := again.recv(65536))
            assert part, "closed early"
        assert answer.startswith(b"HTTP/1.1 200")
        again.sendall(b"GET /hea")  # a second request on the same connection that never ends
        assert _healthy(url)
        drip = slow[0]

        def trickle():  # more bytes give no more time
            try:
                while True:
                    drip.sendall(b"a")
                    time.sleep(0.1)
            except OSError:
                pass

        dripping = threading.Thread(target=trickle)
        dripping.start()
        assert all(_rest(connection) == b"" for connection in [*silent, *slow[1:], again])
        dripping.join(10)
        assert not dripping.is_alive() and _healthy(url)
        drip.close()


def test_s08_who_does_not_take_an_answer_is_dropped(tmp_path, monkeypatch):
    path = tmp_path / "features.h5"
    monkeypatch.setattr("service.connection.time_limits.TAKE_S", 0.5)
    # sparse: 0.5 GB, more than any buffer of the kernel
    write_served(tmp_path, "h5", n=5, reserve=300_000)
    assert path.stat().st_size > 300e6
    with serving(path) as url:
        stalled = [_connected(url) for _ in range(20)]
        for connection in stalled:
            connection.sendall(f"GET {S}/file HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert _healthy(url)
        sent = f'biomass_requests_total{{address="{S.replace("features", "{s}")}/file",status="200"}} 20.0'
        wait_for(lambda: sent in _counts(url))
        received = [len(_rest(connection)) for connection in stalled]
        assert max(received) < 50e6  # what lay in buffers: the rest was never read
        assert _healthy(url)


RUDE = {
    "two lengths": b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: "
    b"5\r\nContent-Length: 6\r\n\r\nabcdef",
    "length and chunks": b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 4\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "body to come": b"POST /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nab",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: 127.0.0.1\r\n\r\n",
    "trace": b"TRACE /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a long head": b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: " + b"a" * 40_000,
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}


@pytest.fixture(scope="module")
def served(path):
    with serving(path) as url:
        yield url


@pytest.mark.parametrize("request_bytes", RUDE.values(), ids=list(RUDE))
def test_s11_rude_requests_are_refused_and_the_connection_closed(served, request_bytes):
    connection = _connected(served)
    connection.sendall(request_bytes)
    status = int(_rest(connection).split()[1])
    assert status in (400, 405, 431)
    assert _healthy(served)


def test_s06_s19_memory_descriptors_and_threads_stay_flat(tmp_path):
    write_served(tmp_path, "h5", n=5, reserve=30_000)
    with started(tmp_path / "features.h5", "--no-token") as (process, said):

        def ask(n):
            for _ in range(n):
                for below in (
                    "rows/@0/0",
                    "arrays/thumbs",
                    "catalog.json?limit=1000000000",
                    "stats.json",
                    "file",
                ):
                    with urllib.request.urlopen(
                        f"{said['url']}v1/stores/features/{below}"
                    ) as answer:
                        while answer.read(1 << 20):
                            pass
            return [held(process.pid), held(worker_of(process))]

        def held(pid):
            status = dict(
                line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            )
            return (
                int(status["VmRSS"].split()[0]) / 1024,
                len(os.listdir(f"/proc/{pid}/fd")),
                int(status["Threads"]),
            )

        for first, second in zip(ask(2), ask(4), strict=True):
            assert second[0] < first[0] + 20  # MB
            assert second[1] <= first[1] + 3 and second[2] <= first[2] + 5


def test_an_answer_of_the_guard_over_a_socket(served):
    request = urllib.request.Request(f"{served}/v1/stores", headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 400
    refused.value.close()


@pytest.mark.parametrize(
    "number", [signal.SIGHUP, pytest.param(signal.SIGUSR1, marks=pytest.mark.system)]
)
def test_L2_a_closed_terminal_ends_the_server_well(path, number):
    with started(path) as (process, _):
        os.kill(worker_of(process), number)  # sent to all of a job: it is the server's to act on
        process.send_signal(number)
        process.send_signal(number)
        assert process.wait(25) == 0
        assert not process.stderr.read().splitlines()[1:]


def test_L1_the_server_outlives_the_readers_of_its_messages(path):
    with started(path, "--no-token") as (process, said):

        def status(place):
            with socket.create_connection(("127.0.0.1", said["port"])) as connection:
                head = f"GET {place} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
                connection.sendall(head.encode())
                return _rest(connection)[9:12]

        process.stderr.close()
        os.kill(worker_of(process), signal.SIGKILL)
        # the server says so when it starts another one, at the earliest a second after the first
        wait_for(lambda: status(f"{S}/stats.json") == b"200")
        assert status("/healthz") == b"200"


@pytest.mark.parametrize("package", ["uvicorn", "starlette", "prometheus_client"])
def test_a_package_that_is_not_there_is_named(package):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from pathlib import Path; from service.server import NotInstalled, serve\n"
        "try: serve([Path('absent.h5')], port=0)\n"
        "except NotInstalled as err: print(err)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith(f"store serve needs {package}"), done.stderr
