"""Which transport an agent uses."""

from __future__ import annotations

import structlog

from baton.core.errors import ConfigError
from baton.kv import ucx
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
        return _one(wanted, name, host, listen)
    try:
        far = _one("ucx", name, host, listen)
    except ConfigError as error:
        log.warning("UCX does not load: pages between hosts travel over plain TCP, more slowly", reason=error.message)
        far = _one("tcp", name, host, listen)
    return NearestTransport(far, lambda used, size: metrics.routed_bytes.labels(transport=used).inc(size))


def _one(wanted: str, name: str, host: str, listen: str) -> Transport:
    transport: Transport
    devices = ""
    try:
        if wanted == "tcp":
            transport = TcpTransport(host, listen)
        elif wanted == "ucxx":
            transport = UcxxTransport(host)
        else:
            transport = NixlTransport(name, host)
            devices = ",".join(ucx.transports())
    except TransportError as error:
        raise ConfigError(f"transport is {wanted}, but {error}", param="transport") from error
    metrics.transport_info.labels(transport=wanted, devices=devices).set(1)
    log.info("transport chosen", transport=wanted, devices=devices)
    return transport
