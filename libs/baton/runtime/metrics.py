"""Metrics of this process in one registry, and an HTTP endpoint for Prometheus.

Names are `baton_<service>_<what>_<unit>[_total]`. Making a metric that exists returns it, so modules may declare what
they use. A metric may be written from any thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from baton.core.errors import ConfigError
from baton.runtime import environ

disable_created_metrics()  # one more series per metric, of no use here

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)

# From one decode step of a small model to a long queue.
LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
CONTENT_TYPE = CONTENT_TYPE_LATEST

_REQUEST_TIMEOUT_S = 5.0
_MAX_HEADER_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Declaration:
    """A metric as it was declared. `kind`: counter, gauge or histogram. `buckets`: of a histogram."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...]


_NO_OPTIONS: Mapping[str, Any] = {}
_made: dict[str, tuple[MetricWrapperBase, Declaration]] = {}
M = TypeVar("M", bound=MetricWrapperBase)


def declared() -> list[Declaration]:
    """All metrics of the modules that have been imported, by name."""
    return sorted((declaration for _, declaration in _made.values()), key=lambda declaration: declaration.name)


def counter(name: str, help: str, labels: Sequence[str] = ()) -> Counter:
    """A number that only grows. Its name ends in `_total`."""
    return _make(Counter, name, help, labels)


def gauge(name: str, help: str, labels: Sequence[str] = (), *, across: str = "livesum") -> Gauge:
    """A number that goes up and down. `across` several processes: livesum, livemax, ... of prometheus_client."""
    return _make(Gauge, name, help, labels, options={"multiprocess_mode": across})


def histogram(
    name: str, help: str, labels: Sequence[str] = (), buckets: Sequence[float] = LATENCY_BUCKETS_S
) -> Histogram:
    """A distribution, counted in `buckets` (upper bounds, in the metric's unit)."""
    return _make(Histogram, name, help, labels, tuple(buckets), {"buckets": tuple(buckets)})


def _make(
    cls: type[M],
    name: str,
    help: str,
    labels: Sequence[str],
    buckets: tuple[float, ...] = (),
    options: Mapping[str, Any] = _NO_OPTIONS,
) -> M:
    wanted = Declaration(name, cls.__name__.lower(), help, tuple(labels), buckets)
    if name not in _made:
        _made[name] = (cls(name, help, wanted.labels, registry=REGISTRY, **options), wanted)
    metric, known = _made[name]
    if not isinstance(metric, cls) or (known.labels, known.buckets) != (wanted.labels, buckets):
        raise ValueError(f"metric {name} exists already, as another kind or with other labels or buckets")
    return metric


def render() -> bytes:
    """All metrics in the Prometheus text format (`CONTENT_TYPE`), of all processes that share them."""
    folder = environ.shared_metrics()
    if folder is None:
        return generate_latest(REGISTRY)
    together = CollectorRegistry()
    MultiProcessCollector(together, folder)
    return generate_latest(together)


def shared(folder: Path) -> AbstractContextManager[None]:
    """Processes that are started while the context lasts keep their metrics in `folder`; each of them, and this one,
    renders the sum. Those of this process stay its own, and are not rendered."""
    return environ.share_metrics(folder)


def forget_process(pid: int) -> None:
    """It has ended: its counters stay part of the sum, its gauges do not."""
    folder = environ.shared_metrics()
    if folder is not None:
        mark_process_dead(pid, folder)


@asynccontextmanager
async def serve(host: str, port: int) -> AsyncIterator[int]:
    """Answer `GET /metrics` while the context lasts. Yields the port (an ephemeral one for 0).

    Raises ConfigError when it cannot listen there.
    """
    try:
        server = await asyncio.start_server(_answer, host, port, limit=_MAX_HEADER_BYTES)
    except OSError as error:
        raise ConfigError(f"metrics: cannot listen on {host}:{port}: {error.strerror}") from error
    async with server:
        yield server.sockets[0].getsockname()[1]


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        async with asyncio.timeout(_REQUEST_TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(_response(head.split(b"\r\n", 1)[0]))
            await writer.drain()
    except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass  # the peer is gone, or speaks no HTTP: there is nobody to tell
    finally:
        writer.close()


def _response(request_line: bytes) -> bytes:
    words = request_line.split()
    if len(words) != 3 or words[0] not in (b"GET", b"HEAD"):
        status, content_type, body = "405 Method Not Allowed", "text/plain", b"GET /metrics\n"
    elif words[1].split(b"?")[0] != b"/metrics":
        status, content_type, body = "404 Not Found", "text/plain", b"GET /metrics\n"
    else:
        status, content_type, body = "200 OK", CONTENT_TYPE, render()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if words[:1] == [b"HEAD"] else body)
