"""Answers that a process of their own makes, the worker.

Who computes holds the interpreter's lock, and here others are answered meanwhile. Each request goes
to it as HTTP over a socket pair of its own; uvicorn serves it there, h11 reads the answer here.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from functools import wraps
from pathlib import Path

import h11
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from featurestore.disk.threads import ASKED, starting
from featurestore.disk.urls import TOKEN
from featurestore.disk.usable import usable_cpus
from featurestore.errors import BiomassError, NoThreadError
from service import log
from service.connection.metrics import resident_bytes
from service.errors import ServiceError
from service.library import Library

HOST = "worker"
"""The Host of requests to the worker; it answers no other."""
# at the worker at once: half of the guard's, so that what is read finds room whatever is computed
MOST_REQUESTS = 128
READ_BYTES = 64 << 10
PAUSE_S = 1  # between two starts: a worker that cannot start must not keep a core busy trying
ROOT = Path(__file__).parent.parent
START = (
    "import sys; root, control, served = sys.argv[1:]; root in sys.path or sys.path.insert(0, "
    "root); from service.worker import main; main(int(control), served)"
)
"""The worker's program: of the package that this module is of, wherever another is installed; -P:
or lies where we are."""
PASSED_ON = (b"accept-encoding", b"if-none-match")  # compressing, too, takes time
# of the connection to the worker; our server says its own
HOP = (b"connection", b"transfer-encoding", b"date")


class Relay:
    """The worker of a library, started now, and again whenever it has ended.

    n_now : requests it answers now. n_starts : how often it was started.
    """

    def __init__(self, library: Library) -> None:
        self._served = json.dumps(
            [
                [str(served.path) for served in library.stores.values()],
                [str(folder) for folder in library.sweep_folders.values()],
                library.data and str(library.data),
                library.max_pixels,
                library.predictions and str(library.predictions),
                library.explain and str(library.explain),
            ]
        )
        self.n_now = self.n_starts = 0
        self.turn = asyncio.Lock()  # of a request that begins, see _Relayed
        self._start()

    @property
    def pid(self) -> int:
        """Of the worker that was started last; it may have ended."""
        return self._process.pid

    def through(self, route: Route) -> Route:
        """The same address, answered by the worker."""

        @wraps(route.endpoint)
        async def relayed(request: Request) -> _Relayed:
            return _Relayed(self, request.scope)

        return Route(route.path, relayed)

    def collect(self) -> Iterator[Metric]:
        """The worker's counts, for a registry of prometheus_client."""
        yield GaugeMetricFamily(
            "biomass_worker_requests_now",
            "Requests that the worker answers now.",
            self.n_now,
        )
        yield CounterMetricFamily(
            "biomass_worker_starts",
            "How often the worker was started.",
            self.n_starts,
        )
        yield GaugeMetricFamily(
            "biomass_worker_resident_bytes",
            "Memory of the worker's process.",
            resident_bytes(self.pid),
        )

    def connect(self) -> socket.socket:
        """A new connection to the worker; ServiceError `busy` if it cannot be started now."""
        try:
            ours, theirs = socket.socketpair()
        except OSError as err:  # no descriptors left
            raise _busy("too many connections are open") from err
        ours.setblocking(False)
        with theirs:
            try:
                self._hand_over(theirs)
            except BaseException:
                ours.close()
                raise
        return ours

    def close(self) -> None:
        """End the worker, whatever it is doing: nothing of it is to be kept."""
        self._control.close()
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            # a new interpreter, for a fork shares locks with our threads; a process group of its
            # own: ^C is for us
            arguments = [str(ROOT), str(theirs.fileno()), self._served]
            command = [sys.executable, "-P", "-c", START, *arguments]
            # who may ask is decided here; the token must not stand in /proc of another process
            environment = {name: value for name, value in os.environ.items() if name != TOKEN}
            if not any(environment.get(name) for name in ASKED):
                # BLAS takes the cores of the machine, whatever the quota
                environment[ASKED[0]] = str(usable_cpus())
            try:
                with starting():
                    self._process = subprocess.Popen(
                        command,
                        pass_fds=[theirs.fileno()],
                        process_group=0,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                    )
            except BaseException:
                ours.close()
                raise
        self._control = ours
        self._started = time.monotonic()
        self.n_starts += 1

    def _hand_over(self, connection: socket.socket) -> None:
        try:
            socket.send_fds(self._control, [b"+"], [connection.fileno()])
        except OSError as err:
            if not isinstance(err, ConnectionError) and self._control.fileno() >= 0:
                raise _busy("many requests wait for what must be computed") from err
            self._start_again()
            socket.send_fds(self._control, [b"+"], [connection.fileno()])

    def _start_again(self) -> None:
        """ServiceError `busy` if it was started just now, or cannot be."""
        self.close()
        if time.monotonic() < self._started + PAUSE_S:
            raise _ended()
        code = self._process.returncode
        end = f"signal {-code}" if code < 0 else f"exit code {code}"
        log.say(f"the worker ended ({end}) and is started again")
        try:
            self._start()
        except (OSError, NoThreadError) as err:
            log.say(f"the worker cannot be started: {err}")
            raise _ended() from err


class _Relayed(StreamingResponse):
    """The worker's answer to a request, handed on no faster than the client takes it.

    Only as long as the client is there.
    """

    def __init__(self, relay: Relay, scope: Scope) -> None:
        super().__init__(())
        self._relay = relay
        self._scope = scope

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ServiceError `busy`, before anything waits, if MOST_REQUESTS are under way."""
        if self._relay.n_now >= MOST_REQUESTS:
            raise _busy(f"{MOST_REQUESTS} requests wait for what must be computed")
        self._relay.n_now += 1
        try:
            # one begins in a round of the loop: of a hundred that come at once none holds up others
            async with self._relay.turn:
                await asyncio.sleep(0)
            await super().__call__(scope, receive, send)
        finally:
            self._relay.n_now -= 1

    async def stream_response(self, send: Send) -> None:
        """ServiceError `busy` if the worker ends before it answers.

        BiomassError, which cuts the connection, if it ends later.
        """
        begun = False
        try:
            with self._relay.connect() as connection:
                async for event in _events(self._scope, connection):
                    if isinstance(event, h11.Response):
                        headers = [(name, text) for name, text in event.headers if name not in HOP]
                        message = {"type": "http.response.start", "status": event.status_code}
                        message["headers"] = headers
                    else:
                        has_data = isinstance(event, h11.Data)  # else EndOfMessage
                        body = bytes(event.data) if has_data else b""
                        message = {"type": "http.response.body", "body": body}
                        message["more_body"] = has_data
                    await send(message)
                    begun = True
        except _Ended as err:
            raise BiomassError("the worker's answer ended early") if begun else _ended() from err


class _Ended(Exception):
    """The worker closed a connection before its answer was whole."""


async def _events(scope: Scope, connection: socket.socket) -> AsyncIterator[h11.Event]:
    """What the worker answers over a connection: h11's Response, Data and EndOfMessage."""
    loop = asyncio.get_running_loop()
    http = h11.Connection(h11.CLIENT)
    event = None
    target = scope["path"].encode("latin-1")
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    headers = [("Host", HOST), *(each for each in scope["headers"] if each[0] in PASSED_ON)]
    request = h11.Request(method=scope["method"], target=target, headers=headers)
    try:
        await loop.sock_sendall(connection, http.send(request) + http.send(h11.EndOfMessage()))
        while not isinstance(event, h11.EndOfMessage):
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await loop.sock_recv(connection, READ_BYTES))
            else:
                yield event
    except (h11.RemoteProtocolError, ConnectionError) as err:
        raise _Ended from err


def _busy(message: str) -> ServiceError:
    return ServiceError("busy", message, "ask again in some seconds")


def _ended() -> ServiceError:
    return _busy("the worker, which computes answers, has ended and is started again")
