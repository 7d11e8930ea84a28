"""uvicorn's HTTP/1.1 protocol with time limits for a request's head and for taking an answer."""

import asyncio

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10
"""A request's head, from the connection or its first byte, must be there within this."""

TAKE_S = 60
"""A client must take what is buffered for it, some `file_bytes.CHUNK_BYTES`, within this."""

DRAIN_S = 4
"""SIGTERM: what is under way may end within this; uvicorn takes some tenths of a second more."""


def config_of(app: ASGIApp, protocol: type[asyncio.Protocol] | None = None) -> uvicorn.Config:
    """uvicorn's settings for this application, without logs and headers of its own.

    protocol : TimeLimitedProtocol if None.
    """
    return uvicorn.Config(
        app,
        http=protocol or TimeLimitedProtocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        proxy_headers=False,  # nothing here depends on who asks or by which scheme
        server_header=False,  # versions are nobody's business
        timeout_keep_alive=30,
        timeout_graceful_shutdown=DRAIN_S,
        h11_max_incomplete_event_size=32 << 10,
    )


class TimeLimitedProtocol(H11Protocol):
    """One connection; aborted, with what is buffered for it, when its client takes too long."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._arm("head", HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in self._timers.values():
            timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.cycle is None or self.cycle.response_complete:
            # the first bytes of another request; later ones give no more time
            self._arm("head", HEAD_S)
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._disarm("head")

    def pause_writing(self) -> None:
        self._arm("take", TAKE_S)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._disarm("take")
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._arm("take", TAKE_S)  # closing waits for what is not taken yet

    def _arm(self, what: str, seconds: float) -> None:
        if what not in self._timers:
            self._timers[what] = self.loop.call_later(seconds, self.transport.abort)

    def _disarm(self, what: str) -> None:
        if what in self._timers:
            self._timers.pop(what).cancel()
