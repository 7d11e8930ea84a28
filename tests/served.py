"""The service, asked in this process by a test client, or over a socket as any program would."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from conftest import write_tiny
from starlette.applications import Starlette
from starlette.testclient import TestClient

from service.app import create_app
from service.connection.time_limits import config_of
from service.library import Library
from service.server import LOOPBACK, listen

ROOT = Path(__file__).parent.parent
TOKEN = "a-token-for-tests-0"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def write_served(folder: Path, suffix: str, **how: Any) -> Path:
    """A tiny store `features` of five images in the folder; a Zarr one in several shards and
    chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featurestore.format.zarr.SHARD_BYTES", 25_000)
        patch.setattr("featurestore.format.zarr.CHUNK_BYTES", 200)
        write_tiny(folder / f"features.{suffix}", **how)
    return folder / f"features.{suffix}"


def app_of(
    *paths: Path,
    sweeps: Sequence[Path] = (),
    data: Path | None = None,
    predictions: Path | None = None,
    explain: Path | None = None,
    hosts: Sequence[str] = LOOPBACK,
    **options: Any,
) -> Starlette:
    """The application of a service of these stores, which computes by itself."""
    library = Library(paths, sweeps, data, predictions=predictions, explain=explain)
    library.require_all()
    return create_app(library, hosts, **options)


def client_of(*paths: Path, headers: dict[str, str] = BEARER, **options: Any) -> TestClient:
    """A client of a service of these stores, which brings the token unless headers are given."""
    app = app_of(*paths, token=TOKEN, **options)
    return TestClient(app, base_url="http://127.0.0.1", headers=headers, follow_redirects=False)


@contextmanager
def serving(*paths: Path, **options: Any) -> Iterator[str]:
    """The address of a server of these stores, without a token unless one is given; it ends with
    the block."""
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(config_of(app_of(*paths, **options)))
    thread = threading.Thread(target=server.run, args=([listening.socket],))
    thread.start()
    try:
        yield listening.url.rstrip("/")
    finally:
        server.should_exit = True
        thread.join(20)


@contextmanager
def started(*arguments: Any) -> Iterator[tuple[subprocess.Popen, dict[str, Any]]]:
    """The process of `biomass store serve` and what it printed as JSON."""
    command = [
        sys.executable,
        "cli.py",
        "store",
        "serve",
        *map(str, arguments),
        "--port",
        "0",
        "--json",
    ]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            yield process, json.loads(line)
        finally:
            process.kill()


def worker_of(server: subprocess.Popen) -> int:
    """Process id of a server's worker."""
    return int(Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text())


def wait_for(something: Callable[[], Any]) -> Any:
    """What something() returns once that is true."""
    until = time.monotonic() + 60  # a worker starts in 2 s, in 20 where the machine is busy
    while not (found := something()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return found


def error_of(response: Any) -> tuple[int, str]:
    """Status and kind of an answer that is an error."""
    return response.status_code, response.json()["error"]["kind"]
