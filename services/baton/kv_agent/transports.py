"""Which transport an agent uses."""

from __future__ import annotations

import structlog

from baton.core.errors import ConfigError
from baton.kv import ucx
from baton.kv.nixl import NixlTransport
from baton.kv.tcp import TcpTransport
from baton.kv.transport import Transport, TransportError
from baton.kv_agent import metrics

log = structlog.get_logger(__name__)


def choose(wanted: str, name: str, host: str, listen: str) -> Transport:
    """The transport for the setting `wanted`. `name` names this incarnation; `host` is where peers reach it.

    Raises ConfigError when UCX is wanted and does not load.
    """
    if wanted in ("auto", "ucx"):
        try:
            transport = NixlTransport(name, host)
        except TransportError as error:
            if wanted == "ucx":
                raise ConfigError(f"transport is ucx, but {error}", param="transport") from error
            log.warning("UCX does not load: pages travel over plain TCP, more slowly", reason=str(error))
        else:
            devices = ",".join(ucx.transports())
            metrics.transport_info.labels(transport="ucx", devices=devices).set(1)
            log.info("transport chosen", transport="ucx", devices=devices)
            return transport
    metrics.transport_info.labels(transport="tcp", devices="").set(1)
    log.info("transport chosen", transport="tcp")
    return TcpTransport(host, listen)
