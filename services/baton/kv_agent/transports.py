"""Which transports an agent uses."""

from __future__ import annotations

import structlog

from baton.core.errors import ConfigError
from baton.kv import ucx
from baton.kv.mapped import MappedTransport
from baton.kv.nearest import NearestTransport
from baton.kv.nixl import NixlTransport
from baton.kv.tcp import TcpTransport
from baton.kv.transport import Transport, TransportError
from baton.kv.ucxx import UcxxTransport
from baton.kv_agent import metrics

log = structlog.get_logger(__name__)


def choose(wanted: str, name: str, host: str, listen: str) -> Transport:
    """The transport for the setting `wanted`. `name` names this incarnation; `host` is where peers reach it.

    Raises ConfigError when a library is wanted and does not load.
    """
    if wanted != "auto":
        return _make(wanted, name, host, listen)
    far = [transport for transport in (_rdma(name, host, listen), _make("tcp", name, host, listen)) if transport]
    return NearestTransport(
        [MappedTransport(), *far], lambda used, size: metrics.routed_bytes.labels(transport=used).inc(size)
    )


def _rdma(name: str, host: str, listen: str) -> Transport | None:
    """UCX, where it has an RDMA device. Over TCP it gains nothing on own sockets (docs/handoff.md), and ends a source's
    process when a reader dies in the middle of a read (docs/architecture.md)."""
    if not ucx.has_rdma():
        return None
    try:
        return _make("ucx", name, host, listen)
    except ConfigError as error:
        log.warning("UCX does not load: pages between hosts travel over plain TCP", reason=error.message)
        return None


def _make(kind: str, name: str, host: str, listen: str) -> Transport:
    transport: Transport
    devices = ""
    try:
        if kind == "tcp":
            transport = TcpTransport(host, listen)
        elif kind == "ucxx":
            transport = UcxxTransport(host)
        else:
            transport = NixlTransport(name, host)
            devices = ",".join(ucx.transports())
    except TransportError as error:
        raise ConfigError(f"transport is {kind}, but {error}", param="transport") from error
    metrics.transport_info.labels(transport=kind, devices=devices).set(1)
    log.info("transport ready", transport=kind, devices=devices)
    return transport
