"""Object storage on loopback: moto's S3 in a thread, and faults on demand."""

import io
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from moto.s3.models import s3_backends
from moto.server import create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "pasture"
KEY_ID, SECRET, SESSION = "AKIDOFATEST", "s3cretOfATest/+", "t0kenOfATest=="

Fault = Callable[["Request"], bool]
"""Takes a request; answers by `request.reply` and returns true, or leaves it to the server."""


class Request:
    """One request: its method and key, and what moto would answer."""

    def __init__(self, app: Callable, environ: dict) -> None:
        self.method = environ["REQUEST_METHOD"]
        self.key = environ["PATH_INFO"].removeprefix(f"/{BUCKET}/")
        self.range = environ.get("HTTP_RANGE", "")
        self._app, self._environ = app, environ
        self.status, self.headers, self.body = "200 OK", [], None

    def right(self) -> bytes:
        """Moto's own answer, whose body a fault may then spoil."""

        def begin(status: str, headers: list, _error=None) -> None:
            self.status, self.headers = status, list(headers)

        return b"".join(self._app(self._environ, begin))

    def spoil_body(self) -> None:
        """Turn a bit of what the client sent."""
        body = bytearray(self._environ["wsgi.input"].read(int(self._environ["CONTENT_LENGTH"])))
        body[len(body) // 2] ^= 1
        self._environ["wsgi.input"] = io.BytesIO(body)

    def drop_conditions(self) -> None:
        self._environ.pop("HTTP_IF_NONE_MATCH", None)

    def reply(self, body: bytes, status: str = "", n_bytes: int | None = None) -> bool:
        """Answer; n_bytes : the length that the head tells."""
        if status:
            self.status = status
            self.headers = [("Content-Type", "application/xml")]
        names = [each for each in self.headers if each[0].lower() != "content-length"]
        told = len(body) if n_bytes is None else n_bytes
        self.headers = [*names, ("Content-Length", str(told))]
        self.body = body
        return True

    def refuse(self, status: str, code: str, more: str = "") -> bool:
        text = f"<Error><Code>{code}</Code><Message>as asked for</Message>{more}</Error>"
        return self.reply(text.encode(), status)


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: object) -> None:
        """Nothing."""


class ObjectServer:
    """`asked` lists method and key of all requests so far; `fault` meets each of them."""

    def __init__(self) -> None:
        self._app = create_backend_app("s3")  # a dispatcher takes longer than the answer
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet
        )
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.asked: list[tuple[str, str]] = []
        self.fault: Fault | None = None
        made = urllib.request.Request(f"{self.endpoint}/{BUCKET}", method="PUT")
        urllib.request.urlopen(made).close()
        self._objects = s3_backends["123456789012"]["aws"]

    def _answer(self, environ: dict, begin: Callable) -> list[bytes]:
        request = Request(self._app, environ)
        self.asked.append((request.method, request.key))
        if self.fault is None or not self.fault(request):
            return self._app(environ, begin)
        begin(request.status, request.headers)
        return [request.body]

    @property
    def rows(self) -> list[str]:
        """Shards of patches that were read from."""
        return [key for method, key in self.asked if method == "GET" and "/patches/c/" in key]

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_SESSION_TOKEN": SESSION,
            "AWS_REGION": "us-east-1",
        }

    def keys(self, url: str) -> dict[str, bytes]:
        """Objects below a URL, by what follows it."""
        prefix = url.removeprefix(f"s3://{BUCKET}/") + "/"
        keys = self._objects.buckets[BUCKET].keys
        found = [(name, key.value) for name, key in keys.items() if name.startswith(prefix)]
        return {name.removeprefix(prefix): content for name, content in found}

    def put(self, url: str, key: str, content: bytes) -> None:
        """As somebody else would, whatever is there."""
        where = url.removeprefix(f"s3://{BUCKET}/")
        self._objects.put_object(BUCKET, f"{where}/{key}", content)

    def remove(self, url: str, key: str) -> None:
        self._objects.delete_object(BUCKET, f"{url.removeprefix(f's3://{BUCKET}/')}/{key}")

    def upload(self, folder: Path, url: str) -> None:
        """All files of a folder."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(url, str(path.relative_to(folder)), path.read_bytes())

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def object_server() -> Iterator[ObjectServer]:
    server = ObjectServer()
    try:
        yield server
    finally:
        server.stop()
