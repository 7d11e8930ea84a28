"""The worker's process: answers for a server, one connection per request, ends with it."""

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from featurestore.disk.interrupts import COUNTED_ONCE
from featurestore.disk.messages import secure_standard_streams
from service import log
from service.app import create_app
from service.connection.time_limits import config_of
from service.library import Library
from service.relay import HOST

NICE = 5  # the server goes first: its answers are small, or read from disk
# threads that compute give way to answers that are ready ten times as often as by Python's 5 ms
SWITCH_S = 5e-4


def main(control: int, served: str) -> None:
    """Answer what comes over the socket `control` (see service.relay) until it closes.

    served : stores, sweeps, folder of photographs, the most pixels of one, predictions and the
        folder of their pictures, as JSON.
    """
    secure_standard_streams()
    # they are the server's, which may want answers while it drains
    for each in (signal.SIGTERM, *COUNTED_ONCE):
        signal.signal(each, signal.SIG_IGN)
    os.nice(NICE)
    sys.setswitchinterval(SWITCH_S)
    stores, sweeps, data, max_pixels, *predicted = json.loads(served)
    folders = list(map(Path, sweeps))
    predictions, explain = (given and Path(given) for given in predicted)
    library = Library(stores, folders, data and Path(data), max_pixels, predictions, explain)
    app = create_app(library, hosts=[HOST])
    asyncio.run(_answer(socket.socket(fileno=control), app))


async def _answer(control: socket.socket, app) -> None:
    loop = asyncio.get_running_loop()
    # the server has the time limits; it alone is a client here
    config = config_of(app, H11Protocol)
    config.load()
    state = ServerState()
    tasks = set()  # the loop itself keeps only weak references to them

    def take() -> None:
        message, descriptors, *_ = socket.recv_fds(control, 1, 1)
        if not message:
            os._exit(0)  # the server has gone; what is computed here now is for nobody
        if not descriptors:
            log.say("the worker has too many connections open for another one")
            return
        task = loop.create_task(
            loop.connect_accepted_socket(
                lambda: config.http_protocol_class(config, state, {}),
                socket.socket(fileno=descriptors[0]),
            )
        )
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    loop.add_reader(control, take)
    await loop.create_future()
