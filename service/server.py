"""Listening: the socket, the printed address, the limits of a connection, and a quick end."""

import errno
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from urllib.parse import quote

from featurestore.disk.interrupts import COUNTED_ONCE, KILLING
from featurestore.disk.maps import raise_file_limit
from featurestore.disk.messages import open_missing_descriptors
from featurestore.errors import BiomassError, InputError, UsageError
from service.token_file import check_token, is_private, kept_token, new_token

LOOPBACK = ("127.0.0.1", "localhost", "::1")

PACKAGES = ("starlette", "uvicorn", "h11", "anyio", "prometheus_client")


class NotInstalled(BiomassError):
    """A package that the service needs is not there."""

    exit_code = 3


@dataclass(frozen=True)
class Listening:
    """Where the server listens; host is what was asked for."""

    socket: socket.socket
    host: str
    port: int

    @property
    def url(self) -> str:
        # a browser cannot open the address that stands for all
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        if ":" in host:  # IPv6
            host = f"[{host}]"
        return f"http://{host}:{self.port}/"


@dataclass(frozen=True)
class Access:
    """What requests must bring, as options say it."""

    token: str | None
    token_file: Path | None
    no_token: bool

    def check(self, host: str, insecure: bool) -> None:
        """UsageError for options that do not go together, and for no token where it is unsafe."""
        if self.no_token and host not in LOOPBACK and not insecure:
            raise UsageError(
                f"--no-token on {host}: everybody who reaches it could read; "
                "add --insecure if that is meant"
            )
        if self.token_file and self.no_token:
            raise UsageError("--token-file and --no-token: choose one")
        if self.token_file and self.token:
            raise UsageError(
                "--token-file, and a token of --token or BIOMASS_TOKEN: choose one; `env -u "
                "BIOMASS_TOKEN biomass store serve ...` leaves the variable out"
            )
        if self.token:
            check_token(self.token)

    def required(self, say: Callable[[str], None]) -> str | None:
        """The token: the file's, which is made if it is not there, or the one given, or a new one;
        None lets everybody in."""
        if self.token_file:
            kept = kept_token(self.token_file)
            if not is_private(self.token_file):
                say(
                    f"{self.token_file}: others may read or write the token; "
                    "`chmod 600` keeps it yours"
                )
            return kept
        if self.no_token:
            return None
        return self.token or new_token()


def serve(
    stores: Sequence[Path],
    sweeps: Sequence[Path] = (),
    data: Path | None = None,
    *,
    max_pixels: int | None = None,
    predictions: Path | None = None,
    explain: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    token_file: Path | None = None,
    no_token: bool = False,
    insecure: bool = False,
    allow_hosts: Sequence[str] = (),
    as_json: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Answer requests until a signal, which lets what is under way end within time_limits.DRAIN_S.

    The signals are those that stop a command; handlers are put back. Off the main thread none are
    set.

    token : what requests must bring; made up if None, unless `no_token`, which elsewhere than on
        loopback needs `insecure`. token_file : keeps one over restarts; made if it is not there.
    predictions : a table of `biomass predict`; explain : the folder of its pictures.
    port : 0 takes a free one. as_json : print {"url", "port", "token"} on stdout. say : takes the
        address for people.

    Raises UsageError for no token without `insecure` and for a token beside `token_file`,
    InputError for a port that is taken or an address that is not ours, NotInstalled, and what
    `kept_token` and `Library.require_all` raise.
    """
    if not (stores or predictions):
        raise UsageError("name a STORE to serve, or a table with --predictions FILE")
    if explain and not predictions:
        raise UsageError("--explain: its pictures are of a table; add --predictions FILE")
    access = Access(token, token_file, no_token)
    access.check(host, insecure)
    # here and not above: what is wrong with the options is said without these packages
    try:
        import uvicorn

        from service.app import create_app
        from service.connection.time_limits import config_of
        from service.explore.predicted import read
        from service.library import Library
        from service.relay import Relay
    except ModuleNotFoundError as err:
        if (err.name or "").split(".")[0] not in PACKAGES:
            raise
        raise NotInstalled(
            f"store serve needs {err.name}, which this installation lacks; `pip install .` in the "
            "project's folder installs it"
        ) from err
    open_missing_descriptors()
    library = Library(stores, sweeps, data, max_pixels, predictions, explain)
    library.require_all()
    if predictions:
        read(predictions)  # what is no table is refused now, not at the first request
    required = access.required(say)

    listening = listen(host, port)
    raise_file_limit()  # a connection takes a descriptor, and so does each file that is being sent
    with closing(Relay(library)) as relay:
        app = create_app(library, (*names_of(host), *allow_hosts), required, relay)
        server = uvicorn.Server(config_of(app))
        # also before uvicorn listens, and when it raises them again at the end
        with _ended_by_signals(server.handle_exit):
            announce(listening, required, as_json, say)
            server.run([listening.socket])


@contextmanager
def _ended_by_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # one that is ignored stays so: nohup ignores SIGHUP, and means it
    heard = [each for each in COUNTED_ONCE if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, handler) for each in (*KILLING, *heard)}
    try:
        yield
    finally:
        for each, previous in before.items():
            signal.signal(each, previous)


def listen(host: str, port: int) -> Listening:
    """A listening socket; InputError if the port is taken or the address is not this machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host,
            port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as err:
        raise InputError(
            f"--host {host}: {err.strerror or err}; give an address of this machine"
        ) from err
    try:
        # a restart must not wait until the last server's connections have timed out
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as err:
        listener.close()
        taken = err.errno == errno.EADDRINUSE
        advice = (
            "choose another, or --port 0 for a free one"
            if taken
            else "give an address of this machine"
        )
        raise InputError(f"{host} port {port}: {os.strerror(err.errno or 0)}; {advice}") from err
    return Listening(listener, host, listener.getsockname()[1])


def names_of(host: str) -> tuple[str, ...]:
    """What a request to this address may call its host.

    A name of somebody else's that leads here is not among them.
    """
    if host in LOOPBACK:
        return LOOPBACK
    if host not in ("0.0.0.0", "::"):
        return (host,)
    name = socket.gethostname()
    try:
        ours = {str(found[4][0]) for found in socket.getaddrinfo(name, None)}
    except OSError:
        ours = set()
    return (*LOOPBACK, name, socket.getfqdn(), *sorted(ours))


def announce(
    listening: Listening,
    token: str | None,
    as_json: bool,
    say: Callable[[str], None],
) -> None:
    """Print the server's address once: with the token for people, in parts for programs."""
    if as_json:
        told = {
            "url": listening.url,
            "port": listening.port,
            "token": token,
        }
        print(json.dumps(told), flush=True)
    query = f"?token={quote(token)}" if token else ""
    say(f"{listening.url}{query}")
