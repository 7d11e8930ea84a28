"""Objects below one URL of a bucket: read, listed, and created where there is none.

Every error is one of the family, and tells no credential: those come from the environment, where
obstore finds them, and go nowhere else.
"""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from featurestore.disk.urls import object_url
from featurestore.errors import InputError, NoAccessError, StoreDamaged, UsageError
from featurestore.format.zarr import MOST_METADATA

# a request is tried again for this long, with waits that grow; then a body that was cut, from its
# beginning, after each of WAITS_S
RETRY = {"max_retries": 10, "retry_timeout": timedelta(minutes=2)}
WAITS_S = (0.1, 1.0, 10.0)
CLIENT = {"connect_timeout": "10s", "read_timeout": "30s", "timeout": "1h"}
# variables that name another server than the provider's own, the first one set counts
ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
SERVER = re.compile(r"https?://[^\s/@?#]+(/[^\s@?#]*)?")
SECRET = re.compile(r"^(AWS|AZURE|GOOGLE)_.*(KEY|SECRET|TOKEN|SAS|PASSWORD|CREDENTIAL)")
# codes of S3 and Azure for what other credentials, or another clock, would mend
REFUSED = {
    "AccessDenied",
    "AuthenticationFailed",
    "AuthorizationFailure",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
MISSING = {"NoSuchKey", "NoSuchBucket", "BlobNotFound", "ContainerNotFound"}
STATUS = re.compile(r"status code: ((\d+)[A-Za-z ]*)")
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
T = TypeVar("T")


class NotThere(InputError):
    """There is no such object, or bucket."""


_process: list[int] = []  # in which obstore was used first; its threads do not outlive a fork


@dataclass(frozen=True)
class ObjectFacts:
    """What a listing tells of an object."""

    size: int
    e_tag: str
    version: str


class ObjectClient:
    """The objects whose keys begin with a URL. Safe to use from several threads."""

    def __init__(self, url: str) -> None:
        self.url = object_url(url)
        try:
            import obstore
        except ImportError as err:
            raise UsageError(
                f"{self.url}: reading object storage needs the package obstore; install "
                "`biomass-tokens[objects]`, or `pip install obstore`"
            ) from err
        if _process and _process[0] != os.getpid():
            raise self._forked()
        _process[:] = [os.getpid()]
        self._obstore = obstore
        options = dict(CLIENT)
        # whoever wrote that knows that it is no TLS
        if _endpoint(self.url).startswith("http://"):
            options["allow_http"] = True

        def begin() -> Any:
            return obstore.store.from_url(self.url, client_options=options, retry_config=RETRY)

        self._store = self._request("", begin, asks_server=False)

    def get(self, key: str) -> tuple[bytes, ObjectFacts]:
        """An object of metadata; StoreDamaged for one that is too large to be any."""

        def read() -> tuple[bytes, dict]:
            found = self._obstore.get(self._store, key)
            if found.meta["size"] > MOST_METADATA:  # its body has not been read yet
                raise StoreDamaged(
                    f"{self.url}/{key}: {found.meta['size']} bytes is no metadata of ours"
                )
            return bytes(found.bytes()), found.meta

        content, told = self._request(key, read)
        return content, _facts(told)

    def get_range(self, key: str, start: int, end: int) -> np.ndarray:
        """(end - start,) uint8; StoreDamaged for an object that ends before."""

        def read() -> Any:
            return self._obstore.get_range(self._store, key, start=start, end=end)

        found = np.frombuffer(self._request(key, read), np.uint8)
        if len(found) != end - start:
            raise StoreDamaged(
                f"{self.url}/{key}: it ends at byte {start + len(found)}, {end} bytes expected; "
                "put the whole object there again"
            )
        return found

    def facts(self, key: str) -> ObjectFacts:
        return _facts(self._request(key, lambda: self._obstore.head(self._store, key)))

    def list(self) -> dict[str, ObjectFacts]:
        """All objects, by key."""

        def read() -> list:
            return [each for batch in self._obstore.list(self._store) for each in batch]

        return {each["path"]: _facts(each) for each in self._request("", read)}

    def create(self, key: str, content: Path | bytes) -> str | None:
        """Put an object where there is none, and tell its ETag.

        None where there is one, and nothing is changed.
        """
        from obstore.exceptions import AlreadyExistsError

        def put() -> str | None:
            try:
                told = self._obstore.put(self._store, key, content, mode="create")
            except AlreadyExistsError:
                return None
            return told["e_tag"] or ""

        return self._request(key, put)

    def _request(self, key: str, ask: Callable[[], T], asks_server: bool = True) -> T:
        """What a request gives; a body that was cut is requested again."""
        if os.getpid() != _process[0]:
            raise self._forked()
        where = f"{self.url}/{key}".rstrip("/")
        for wait_s in (*WAITS_S, None):
            refusal = None
            try:
                return ask()
            except Exception as err:
                # told after the block: the error it came from holds what nobody may read
                refusal = _refusal(err, where, asks_server)
                if refusal is None:
                    raise
                # an answer that began and did not come whole: obstore does not try that again
                is_cut = "response body error" in str(err)
                may_pass = isinstance(refusal, InputError) and is_cut
            if wait_s is None or not may_pass:
                raise refusal
            time.sleep(wait_s)
        raise AssertionError("not reached")

    def _forked(self) -> UsageError:
        return UsageError(
            f"{self.url}: object storage cannot be reached from a forked process; start processes "
            "by multiprocessing's `spawn` or `forkserver`"
        )


def _endpoint(url: str) -> str:
    """The server that the environment names for a URL's scheme, or nothing.

    UsageError for what is no server's URL, at which obstore panics, and for a password, which its
    errors would tell.
    """
    names = ENDPOINTS[url.partition(":")[0]]
    name = next((each for each in names if os.environ.get(each)), None)
    endpoint = os.environ[name] if name else ""
    if name and not SERVER.fullmatch(endpoint):
        raise UsageError(
            f"{name}: no URL of a server; it looks like http://localhost:9000, and holds no name "
            "or password"
        )
    return endpoint


def _facts(told: dict) -> ObjectFacts:
    version = f"{told.get('version')} {told.get('last_modified')}"
    return ObjectFacts(told["size"], told.get("e_tag") or "", version)


def _refusal(err: Exception, where: str, asked_server: bool) -> Exception | None:
    """What to tell the user, without what the environment or an answer holds of credentials.

    None for what is no error of a request.
    """
    from obstore.exceptions import BaseError

    text = str(err)
    if not isinstance(err, BaseError | FileNotFoundError | PermissionError | ValueError):
        return None
    code = _element(text, "Code")
    status = STATUS.search(text)
    said = text.partition("\n")[0][:300]
    if status:  # else nobody answered
        said = f"{code}: {_element(text, 'Message')}" if code else status[1]
    said = without_secrets(said)
    if isinstance(err, FileNotFoundError) or code in MISSING:
        return NotThere(f"{where}: not found ({code or 'no such object'})")
    if code == "InvalidRange":
        return StoreDamaged(f"{where}: shorter than expected; put the whole object there again")
    # to HEAD a server says no more than its status
    is_refused = status and status[2] in ("401", "403") or (status and not code and "400" in said)
    # what is wrong before any server is asked is what the environment says
    if code in REFUSED or is_refused or not asked_server or "credential" in text.lower():
        names = CREDENTIALS[where.partition(":")[0]]
        return NoAccessError(
            f"{where}: no access ({said}); credentials are read from the environment: give valid "
            f"ones there, e.g. {names}, and start again"
        )
    return InputError(f"{where}: no answer that could be used ({said}); try again later")


def _element(text: str, name: str) -> str:
    """Of an answer in XML."""
    found = re.search(rf"<{name}>([^<]*)</{name}>", text)
    if not found:
        return ""
    return "".join(c if c.isprintable() else " " for c in found[1])


def without_secrets(text: str) -> str:
    """The text with the values of credentials in the environment struck out."""
    for name, value in os.environ.items():
        # a short value could be a common word, and striking that out would tell nothing any more
        if SECRET.match(name) and len(value) >= 8:
            text = text.replace(value, "...")
    return text
