"""uvicorn's HTTP/1.1 protocol with the ASGI extension `http.response.zerocopysend`: the kernel
takes bytes from file to socket.

Rows of 9 MB need no copy of ours, and no thread: bench_serve says what that is worth.
"""

import asyncio
from dataclasses import dataclass

import h11
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

ZERO_COPY = "http.response.zerocopysend"
TAKE_S = 60
"""The client must take what was sent, at most `file_bytes.ZERO_COPY_BYTES`, within this: 35 kB/s
or more."""


@dataclass(frozen=True)
class _File:
    """What asyncio wants of a file."""

    fd: int

    def fileno(self) -> int:
        return self.fd


class ZeroCopyProtocol(H11Protocol):
    """One connection, whose application may send `{"type": ZERO_COPY, "file": descriptor, "offset",
    "count", "more_body": True}`.

    Source: the ASGI specification, extensions. A last message of another type must end the body.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.app = self._extended(self.app)

    def _extended(self, app: ASGIApp) -> ASGIApp:
        async def extended(scope: Scope, receive: Receive, send: Send) -> None:
            # of this request: the next one's begins when this one's answer is complete
            cycle = self.cycle

            async def either(message: Message) -> None:
                await (
                    self._send_file(cycle, message)
                    if message["type"] == ZERO_COPY
                    else send(message)
                )

            await app({**scope, "extensions": {ZERO_COPY: {}}}, receive, either)

        return extended

    async def _send_file(self, cycle: RequestResponseCycle, message: Message) -> None:
        """As the cycle's own `send`: returns when the kernel has the bytes, at once where nobody is
        there to take them.

        OSError if the file ends before them, SendfileNotAvailableError, with nothing sent, if the
        kernel cannot do it: the client has gone just now, or the file system knows no sendfile.
        """
        if self.flow.write_paused and not cycle.disconnected:
            await self.flow.drain()
        if cycle.disconnected or self.transport.is_closing():
            cycle.disconnected = True
            return
        count = message["count"]
        try:
            async with asyncio.timeout(TAKE_S):
                n_sent = await self.loop.sendfile(
                    self.transport, _File(message["file"]), message["offset"], count, fallback=False
                )
        except (ConnectionError, TimeoutError):
            self.transport.abort()
            # uvicorn hears of it a moment later, and would end a body that is not whole
            cycle.disconnected = True
            return
        if n_sent < count:
            raise OSError("a file was cut while it was sent")
        # for its length alone: h11 counts what is sent
        self.conn.send_with_data_passthrough(h11.Data(data=range(count)))
        await asyncio.sleep(0)  # a client that takes all at once must not keep others waiting
