"""Counts for Prometheus: requests by address and status, their time, bytes sent, work under way."""

import os
import time
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    values,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BOUNDS_S = (0.01, 0.1, 1.0, 10.0)

disable_created_metrics()  # a series more for each counter, of when it was first counted

# counts stay in memory: PROMETHEUS_MULTIPROC_DIR, perhaps set for other programs, would put them
# into files there, and a later process of the same id would count on from them
values.ValueClass = values.MutexValue


class Metrics:
    """What one application counts, in a registry of its own: tests start several in a process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "biomass_requests",
            "Requests answered, refused ones too.",
            ["address", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "biomass_request_seconds",
            "Time from a request's head to the end of its answer.",
            buckets=BOUNDS_S,
            registry=self.registry,
        )
        self.sent = Counter("biomass_sent_bytes", "Bytes of bodies sent.", registry=self.registry)
        self.now = Gauge("biomass_requests_now", "Requests under way.", registry=self.registry)
        resident = Gauge(
            "biomass_resident_bytes",
            "Memory of the server's process.",
            registry=self.registry,
        )
        resident.set_function(lambda: resident_bytes("self"))

    def text(self) -> tuple[bytes, str]:
        """The counts in Prometheus' text format, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_PLAIN_0_0_4


class Counting:
    """Counts every request that passes, refused ones too."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        metrics = self.metrics
        begun = time.perf_counter()
        status = 500  # unless an answer begins

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            metrics.sent.inc(len(message.get("body", b"")))

        with metrics.now.track_inprogress():
            try:
                await self.app(scope, receive, counted)
            finally:
                metrics.seconds.observe(time.perf_counter() - begun)
                metrics.requests.labels(_address(scope), status).inc()


def _address(scope: Scope) -> str:
    """The route that was taken, with its names in braces; `other` if there is none."""
    endpoint = scope.get("endpoint")
    for route in scope["app"].routes:
        if endpoint is not None and getattr(route, "endpoint", None) is endpoint:
            return route.path
    return "other"


def resident_bytes(pid: int | str) -> int:
    """Memory of a process, shared pages included; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
    except OSError:
        return 0
    n_pages = int(fields[1])
    return n_pages * os.sysconf("SC_PAGE_SIZE")
