"""Client channels with the options that all Baton clients use."""

from __future__ import annotations

from typing import Any

import grpc

from baton.rpc.server import MAX_MESSAGE_BYTES
from baton.rpc.tls import Tls

OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # 60 s by default: a peer that is stopped would be noticed that late
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),  # for a connection to come up: busy hosts and TLS take their time
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


def open_channel(address: str, tls: Tls | None = None) -> grpc.aio.Channel:
    """A channel to `host:port` or `unix:path`. It connects lazily and reconnects by itself; close it when done.

    `tls`: not for Unix sockets, which are this machine's. Raises ConfigError when its files cannot be read.
    """
    if tls is None or address.startswith("unix:"):
        return grpc.aio.insecure_channel(address, options=OPTIONS)
    return grpc.aio.secure_channel(address, tls.channel_credentials(), options=[*OPTIONS, *tls.channel_options()])
