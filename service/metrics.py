"""Counts for Prometheus: requests by address and status, their time, bytes sent, work under way."""

import os
import time
from collections import Counter
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.openapi import described
from service.relay import Relay

BOUNDS_S = (0.01, 0.1, 1.0, 10.0)


class Metrics:
    """What was counted since the start."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.within: Counter[float] = Counter()
        self.seconds, self.n_bytes, self.n_now = 0.0, 0, 0


class Counting:
    """Counts every request that passes, refused ones too."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        metrics, begun, status = self.metrics, time.perf_counter(), 500
        metrics.n_now += 1

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            # a part that could not go comes again
            metrics.n_bytes += len(message.get("body", b"")) + message.get("count", 0)

        try:
            await self.app(scope, receive, counted)
        finally:
            taken = time.perf_counter() - begun
            metrics.n_now -= 1
            metrics.seconds += taken
            metrics.within.update(bound for bound in BOUNDS_S if taken <= bound)
            metrics.requests[_address(scope), status] += 1


def _address(scope: Scope) -> str:
    """The route that was taken, with its names in braces; `other` if there is none."""
    taken = scope.get("endpoint")
    return next(
        (
            each.path
            for each in scope["app"].routes
            if taken and getattr(each, "endpoint", None) is taken
        ),
        "other",
    )


@described("json", ())
async def healthz(request: Request) -> Response:  # async: it waits for no thread
    """Whether the server answers; it needs no token and looks at no store."""
    return JSONResponse({"status": "ok"})


@described("text", ())
def metrics(request: Request) -> Response:
    """Counts in Prometheus' text format."""
    return PlainTextResponse(
        text(request.app.state.metrics, request.app.state.relay),
        media_type="text/plain; version=0.0.4; charset=utf-8",
    )


def text(metrics: Metrics, relay: Relay | None) -> str:
    """The exposition, see prometheus.io/docs/instrumenting/exposition_formats."""
    total = sum(metrics.requests.values())
    lines = ["# TYPE biomass_requests_total counter"]
    lines += [
        f'biomass_requests_total{{address="{address}",status="{status}"}} {n}'
        for (address, status), n in sorted(metrics.requests.items())
    ]
    lines += ["# TYPE biomass_request_seconds histogram"]
    lines += [
        f'biomass_request_seconds_bucket{{le="{bound:g}"}} {metrics.within[bound]}'
        for bound in BOUNDS_S
    ]
    lines += [
        f'biomass_request_seconds_bucket{{le="+Inf"}} {total}',
        f"biomass_request_seconds_sum {metrics.seconds:.6f}",
        f"biomass_request_seconds_count {total}",
    ]
    values = [
        ("sent_bytes_total", "counter", metrics.n_bytes),
        ("requests_now", "gauge", metrics.n_now),
        ("resident_bytes", "gauge", resident_bytes("self")),
    ]
    if relay:
        values += [
            ("worker_requests_now", "gauge", relay.n_now),
            ("worker_starts_total", "counter", relay.n_starts),
            ("worker_resident_bytes", "gauge", resident_bytes(relay.pid)),
        ]
    for name, kind, value in values:
        lines += [f"# TYPE biomass_{name} {kind}", f"biomass_{name} {value}"]
    return "\n".join(lines) + "\n"


def resident_bytes(pid: int | str) -> int:
    """Memory of a process, shared pages included; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
