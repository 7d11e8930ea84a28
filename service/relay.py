"""Answers that a process of their own makes, the worker: who computes holds the interpreter's lock, and here others are answered
meanwhile. Each request goes to it as HTTP over a socket pair of its own; uvicorn serves it there, h11 reads the answer here.
"""

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from functools import wraps
from pathlib import Path

import h11
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from featurestore.errors import BiomassError
from service import log
from service.errors import ServiceError

HOST = "worker"
"""The Host of requests to the worker; it answers no other."""
READ_BYTES = 64 << 10
HOP = (b"connection", b"transfer-encoding", b"date")  # of the connection to the worker; our server says its own


class Relay:
    """The worker of these stores, sweeps and photographs, started now, and again whenever it has ended.

    stores, sweeps, data : as `create_app` takes them. n_now : requests it answers now. n_starts : how often it was started.
    """

    def __init__(self, stores: Sequence[Path], sweeps: Sequence[Path] = (), data: Path | None = None) -> None:
        self._served = json.dumps([[str(path.absolute()) for path in stores], [str(path.absolute()) for path in sweeps],
                                   data and str(data.absolute())])
        self.n_now = self.n_starts = 0
        self._start()

    @property
    def pid(self) -> int:
        """Of the worker that was started last; it may have ended."""
        return self._process.pid

    def through(self, route: Route) -> Route:
        """The same address, answered by the worker."""
        @wraps(route.endpoint)
        async def relayed(request: Request) -> _Relayed:
            return _Relayed(self)

        return Route(route.path, relayed)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new connection to the worker; ServiceError `busy` if it has not taken many others yet."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._hand_over(theirs)
            except BaseException:
                ours.close()
                raise
        return await asyncio.open_unix_connection(sock=ours)

    def close(self) -> None:
        """End the worker, whatever it is doing: nothing of it is to be kept."""
        self._control.close()
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        with theirs:
            # a new interpreter, for a fork shares locks with our threads; -P: the folder we are in holds no modules of ours
            command = [sys.executable, "-P", "-m", "service.worker", str(theirs.fileno()), self._served]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                                             stdout=subprocess.DEVNULL)
        self.n_starts += 1

    def _hand_over(self, connection: socket.socket) -> None:
        try:
            socket.send_fds(self._control, [b"+"], [connection.fileno()])
        except BlockingIOError as err:
            raise ServiceError("busy", "many requests wait for what computes answers", "ask again in some seconds") from err
        except ConnectionError:
            self.close()
            log.say(f"what computes answers ended ({_end_of(self._process.returncode)}) and is started again")
            self._start()
            socket.send_fds(self._control, [b"+"], [connection.fileno()])


class _Relayed:
    """The worker's answer to a request, handed on as it comes and no faster than the client takes it."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ServiceError `busy` if the worker ends before it answers; BiomassError, which cuts the connection, if it does later."""
        self._relay.n_now += 1
        begun = False
        try:
            async for event in _events(scope, *await self._relay.connect()):
                if isinstance(event, h11.Response):
                    begun = True
                    await send({"type": "http.response.start", "status": event.status_code,
                                "headers": [(name, value) for name, value in event.headers if name not in HOP]})
                elif isinstance(event, h11.Data):
                    await send({"type": "http.response.body", "body": bytes(event.data), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (_Ended, ServiceError) as err:
            if begun:
                raise BiomassError("the worker's answer ended early") from err
            raise ServiceError("busy", "what computes answers has ended and is started again",
                               "ask again in some seconds") from err
        finally:
            self._relay.n_now -= 1


class _Ended(Exception):
    """The worker closed a connection before its answer was whole."""


async def _events(scope: Scope, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> AsyncIterator[h11.Event]:
    """What the worker answers, to the end of the message."""
    connection = h11.Connection(h11.CLIENT)
    query = scope["query_string"]
    request = h11.Request(method=scope["method"], target=scope["path"].encode("latin-1") + (b"?" + query if query else b""),
                          headers=[("Host", HOST)])
    try:
        writer.write(connection.send(request) + connection.send(h11.EndOfMessage()))
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(READ_BYTES))
            else:
                yield event
    except (h11.RemoteProtocolError, OSError) as err:
        raise _Ended from err
    finally:
        writer.close()


def _end_of(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
