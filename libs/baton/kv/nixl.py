"""The primary transport: UCX through NIXL, one-sided reads of scattered pages. `nixl_thread` does the work."""

from __future__ import annotations

from baton.kv import ucx
from baton.kv.nixl_thread import NixlThread
from baton.kv.ucx_thread import UcxTransport


class NixlTransport(UcxTransport):
    """`name` of the agent must differ between epochs. Raises TransportError where NIXL or UCX does not load.

    `host` is the address under which this agent is reached.
    """

    def __init__(self, name: str, host: str) -> None:
        ucx.prepare(host)
        super().__init__("ucx", NixlThread(name))
