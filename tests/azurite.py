"""Azurite, Microsoft's own stand-in for Azure Blob Storage, on loopback."""

import base64
import hashlib
import hmac
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

from seaweed import ask_once_it_listens, free_ports

VERSION = "3.35.0"
# the account that Azurite documents: it is the same everywhere, and no secret
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@contextmanager
def azurite(program: Path, folder: Path, container: str) -> Iterator[dict[str, str]]:
    """A server that keeps its objects below folder, with a container; the environment it is read
    by."""
    (port,) = free_ports(1)
    settings = [f"--location={folder}", "--blobHost=127.0.0.1", f"--blobPort={port}"]
    # obstore may speak a newer version of the protocol than this one knows
    settings += ["--skipApiVersionCheck", "--disableTelemetry"]
    with open(folder / "azurite.log", "wb") as log:
        process = subprocess.Popen([program, *settings], stdout=log, stderr=log, cwd=folder)
    try:
        endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        ask_once_it_listens(lambda: _making(endpoint, container), process, folder / "azurite.log")
        yield {
            "AZURE_STORAGE_ENDPOINT": endpoint,
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
        }
    finally:
        process.kill()
        process.wait()


def installed(folder: Path) -> Path:
    """Azurite's program, from npm."""
    program = folder / "node_modules/.bin/azurite-blob"
    if not program.exists():
        install = ["npm", "install", "--prefix", folder, "--ignore-scripts", "--no-audit"]
        subprocess.run([*install, f"azurite@{VERSION}"], check=True, capture_output=True)
    return program


def _making(endpoint: str, name: str) -> urllib.request.Request:
    """A container's creation, by the REST interface: obstore makes none."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    told = "".join(f"{key}:{value}\n" for key, value in headers.items())
    # source: Authorize with Shared Key, Azure Storage's REST reference
    signed = "PUT" + 12 * "\n" + told + f"/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    mac = hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(mac).decode()}"
    url = f"{endpoint}/{name}?restype=container"
    return urllib.request.Request(url, headers=headers, method="PUT")
