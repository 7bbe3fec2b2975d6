"""The second UCX transport: UCX through UCXX, by events instead of polling. `ucxx_thread` does the work."""

from __future__ import annotations

from baton.kv import ucx
from baton.kv.ucx_thread import UcxTransport
from baton.kv.ucxx_thread import UcxxThread


class UcxxTransport(UcxTransport):
    """`host` is where this agent is reached. Raises TransportError where UCXX or UCX does not load."""

    def __init__(self, host: str) -> None:
        ucx.prepare(host)
        super().__init__("ucxx", UcxxThread())
