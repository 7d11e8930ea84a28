"""A server of one store, in a thread: what docs/service.md says of the addresses a RemoteStore asks
for, and faults on demand."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from featurestore import FeatureStore

Fault = Callable[["Handler", bytes], bool]
"""Takes a request and the right body; answers in its own way and returns true, or leaves it to the
server."""


class Server(ThreadingHTTPServer):
    """`url` is the store's; `asked` lists the paths of all requests so far."""

    daemon_threads = True

    def __init__(self, path: Path, token: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.path, self.token, self.asked, self.fault = path, token, [], None
        self.store, self.generation, self.lock = FeatureStore.open(path), "0" * 16, threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}/v1/stores/{path.stem}"

    @property
    def rows(self) -> list[str]:
        """Rows that were asked for, `@3/1`."""
        return [path.partition("/rows/")[2] for path in self.asked if "/rows/" in path]

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is no error."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are sent apart: 40 ms each else

    def do_GET(self) -> None:
        server, split = self.server, urlsplit(self.path)
        with server.lock:
            server.asked.append(split.path)
        if server.token and self.headers.get("Authorization") != f"Bearer {server.token}":
            self.error(401, "unauthorized", "a token is wanted")
            return
        with server.lock:  # of the store: not all of it is for several threads
            body = self.body(unquote(split.path), parse_qs(split.query))
        if body is None:
            self.error(404, "not-found", "no such address")
        elif server.fault is None or not server.fault(self, body):
            self.answer(body)

    def body(self, path: str, query: dict) -> bytes | None:
        store, root = self.server.store, urlsplit(self.server.url).path
        if path == "/v1/stores":
            return json.dumps({"stores": [self.about(store)], "sweeps": []}).encode()
        if path == root:
            store.refresh()
            return json.dumps(
                self.about(store) | {"spec": json.loads(store.spec.to_json())}
            ).encode()
        if path.startswith(f"{root}/arrays/"):
            store.refresh()
            return store.array(path.removeprefix(f"{root}/arrays/")).tobytes()
        if path.startswith(f"{root}/rows/@"):
            assert query == {"tokens": ["patches"]}
            return store.patches[tuple(map(int, path.partition("@")[2].split("/")))].tobytes()
        return None

    def about(self, store: FeatureStore) -> dict:
        return {
            "name": self.server.path.stem,
            "n_images": store.n_images,
            "n_sealed": store.n_sealed,
            "n_room": store.layout.n,
            "generation": self.server.generation,
        }

    def answer(self, body: bytes) -> None:
        status = 200
        if asked := self.headers.get("Range"):
            first, last = map(int, asked.removeprefix("bytes=").split("-"))
            status, body = 206, body[first : last + 1]
        self.begin(status, len(body))
        self.wfile.write(body)

    def begin(self, status: int, n_bytes: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {
            "Content_Length": str(n_bytes),
            "X_Store_Generation": self.server.generation,
            **headers,
        }.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def error(self, status: int, kind: str, message: str, **headers: str) -> None:
        body = json.dumps({"error": {"kind": kind, "message": message, "hint": ""}}).encode()
        self.begin(status, len(body), **headers)
        self.wfile.write(body)

    def cut(self, body: bytes) -> None:
        """Half an answer, then nothing."""
        self.begin(200, len(body))
        self.wfile.write(body[: len(body) // 2])
        self.close_connection = True

    def log_message(self, *_) -> None:
        """Quiet."""


@contextmanager
def serving(path: Path, token: str = "") -> Iterator[Server]:
    server = Server(path, token)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def spoilt(body: bytes) -> bytes:
    """The same with one bit turned."""
    return (
        np.bitwise_xor(np.frombuffer(body, np.uint8), np.arange(len(body)) == len(body) // 2)
        .astype(np.uint8)
        .tobytes()
    )
