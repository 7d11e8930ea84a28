"""nginx in front, configured as docs/service.md says: the same answers, and slow clients are cut."""

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from pathlib import Path

import pytest
from conftest import tiny_frame, tiny_rows, tiny_spec
from served import BEARER, ROOT, TOKEN, serving, write_served

from featurestore import FeatureStore, open_writer
from service.server import listen

# Debian has it where only root's PATH looks
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(
        not (NGINX and shutil.which("openssl")),
        reason="needs nginx and openssl (Debian: nginx-light, openssl)",
    ),
]

S = "/v1/stores/features"
ROW = f"{S}/rows/@0/0"
DOCUMENTED = re.search(r"```nginx\n(.*?)```", (ROOT / "docs/service.md").read_text(), re.S)[1]


@contextmanager
def nginx_before(service: str, folder: Path, **limits: str) -> Iterator[str]:
    """The address of an nginx that has the documented configuration, but for places and limits."""
    free = listen("127.0.0.1", 0)
    free.socket.close()
    replaced = {
        "listen 443 ssl;": f"listen 127.0.0.1:{free.port} ssl;",
        "/etc/ssl/": f"{folder}/",
        "/var/log/nginx/": f"{folder}/",
        "http://127.0.0.1:8000;": f"{service};",
    }
    server = DOCUMENTED
    for found, stands_in in replaced.items():
        assert found in server
        server = server.replace(found, stands_in)
    for name, value in limits.items():
        server, n_found = re.subn(rf"\b{name} \S+;", f"{name} {value};", server)
        assert n_found == 1

    # root's worker is nobody by default, who may not write below a test's folder
    user = "user root;" if os.getuid() == 0 else ""
    temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
    paths = " ".join(f"{name}_temp_path {folder}/{name};" for name in temporary)
    (folder / "nginx.conf").write_text(
        f"daemon off; {user} pid {folder}/nginx.pid; error_log {folder}/main.log crit; events {{}}\n"
        f"http {{ {paths}\n{server}\n}}\n"
    )
    certificate = ["-keyout", folder / "biomass.key", "-out", folder / "biomass.pem"]
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *certificate, *subject],
        check=True,
        capture_output=True,
    )
    with subprocess.Popen([NGINX, "-p", folder, "-c", folder / "nginx.conf"]) as process:
        try:
            _wait_for(lambda: (folder / "nginx.pid").exists() and _accepts(free.port))
            yield f"https://127.0.0.1:{free.port}"
        finally:
            process.terminate()


def ask(
    url: str, path: str, folder: Path | None = None, method: str = "GET", **headers: str
) -> tuple[HTTPResponse, bytes]:
    """The answer and its body; folder : of the certificate, where the address has TLS."""
    _, _, host = url.rpartition("/")
    if folder is None:
        connection = HTTPConnection(host, timeout=20)
    else:
        trusted = ssl.create_default_context(cafile=folder / "biomass.pem")
        connection = HTTPSConnection(host, timeout=20, context=trusted)
    with closing(connection):
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, headers=BEARER | names)
        answer = connection.getresponse()
        return answer, answer.read()


def _wait_for(holds, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _connected(url: str, folder: Path) -> ssl.SSLSocket:
    address = ("127.0.0.1", int(url.rpartition(":")[2]))
    trusted = ssl.create_default_context(cafile=folder / "biomass.pem")
    connection = trusted.wrap_socket(socket.create_connection(address), server_hostname="127.0.0.1")
    connection.settimeout(20)
    return connection


def test_answers_through_nginx_are_those_of_the_service(tmp_path):
    path = write_served(tmp_path, "h5")
    with serving(path, token=TOKEN) as service, nginx_before(service, tmp_path) as url:
        row, content = ask(service, ROW)
        through, same = ask(url, ROW, tmp_path)
        assert same == content and len(content) > 100
        for name in ("ETag", "Content-Length", "Accept-Ranges", "X-Shape", "X-Store-Generation"):
            assert through.headers[name] == row.headers[name]
        head, nothing = ask(url, ROW, tmp_path, "HEAD")
        assert (head.headers["ETag"], nothing) == (row.headers["ETag"], b"")
        part, some = ask(url, ROW, tmp_path, Range="bytes=10-19")
        assert (part.status, some) == (206, content[10:20])
        parts, _ = ask(url, ROW, tmp_path, Range="bytes=0-1,4-5")
        assert parts.status == 206 and "multipart/byteranges" in parts.headers["Content-Type"]
        beyond, _ = ask(url, ROW, tmp_path, Range=f"bytes={len(content)}-")
        assert beyond.status == 416
        known, nothing = ask(url, ROW, tmp_path, If_None_Match=row.headers["ETag"])
        assert (known.status, nothing) == (304, b"")


def test_ids_pass_through_nginx_as_they_are_encoded(tmp_path):
    frame = tiny_frame(4)
    frame["image_id"] = ["a/b ä", "@2", "../x", "100%25?#"]
    spec = tiny_spec(frame)
    with open_writer(tmp_path / "features.h5", spec, frame) as writer:
        for image in range(4):
            writer.put(image, tiny_rows(spec, image))
    store = FeatureStore.open(tmp_path / "features.h5")
    with serving(tmp_path / "features.h5") as service, nginx_before(service, tmp_path) as url:
        for image, encoded in enumerate(["a%2Fb%20%C3%A4", "%402", "..%2Fx", "100%2525%3F%23"]):
            _, content = ask(url, f"{S}/rows/{encoded}/0", tmp_path)
            assert content == store.patches[image, 0].tobytes()


def test_a_token_opens_the_page_and_is_in_no_log(tmp_path):
    path = write_served(tmp_path, "h5")
    with serving(path, token=TOKEN) as service, nginx_before(service, tmp_path) as url:
        healthy, said = ask(url, "/healthz", tmp_path, Authorization="")
        assert (healthy.status, json.loads(said)) == (200, {"status": "ok"})
        assert ask(url, S, tmp_path, Authorization="")[0].status == 401
        opened, _ = ask(url, f"/?token={TOKEN}", tmp_path, Authorization="")
        assert opened.status in (302, 303, 307) and ":" not in opened.headers["Location"]
        cookie = opened.headers["Set-Cookie"].partition(";")[0]
        assert ask(url, S, tmp_path, Authorization="", Cookie=cookie)[0].status == 200
    logs = list(tmp_path.glob("*.log"))
    assert logs and not any(TOKEN in log.read_text() for log in logs)


def test_a_head_that_never_ends_is_cut_by_nginx(tmp_path):
    path = write_served(tmp_path, "h5")
    with (
        serving(path) as service,
        nginx_before(service, tmp_path, client_header_timeout="1s") as url,
    ):
        begun = time.monotonic()
        with _connected(url, tmp_path) as slow:
            slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ")
            assert ask(url, "/healthz", tmp_path)[0].status == 200
            assert b" 200 " not in slow.recv(65536)  # 408, or nothing, and the end
        assert 0.5 < time.monotonic() - begun < 9  # before the service's own limit


def test_who_does_not_take_an_answer_is_cut_by_nginx_and_the_service_is_free(tmp_path):
    # sparse: 0.5 GB, more than any buffer of the kernel
    path = write_served(tmp_path, "h5", n=5, reserve=300_000)
    assert path.stat().st_size > 300e6
    with (
        serving(path) as service,
        nginx_before(service, tmp_path, send_timeout="1s") as url,
    ):

        def counted(name: str) -> float:
            text = ask(url, "/metrics", tmp_path)[1].decode()
            return float(re.search(rf"^{name} (\S+)", text, re.M)[1])

        with _connected(url, tmp_path) as stalled:
            stalled.sendall(f"GET {S}/file HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            # the request for the metrics is one itself
            _wait_for(lambda: counted("biomass_requests_now") == 2)
            _wait_for(lambda: counted("biomass_requests_now") == 1)
        assert counted("biomass_sent_bytes_total") < 50e6  # nginx took no more than it could send
