"""Settings of the KV agent."""

from __future__ import annotations

from typing import ClassVar

from baton.kv.handoff import ReaderLimits, SourceLimits
from baton.kv.tier.limits import TierLimits
from baton.runtime.settings import ServiceSettings, setting


class KvAgentSettings(ServiceSettings):
    section: ClassVar[str] = "kv_agent"

    socket: str = setting(..., "Unix socket where this agent's worker connects; the worker's --agent-socket")
    listen: str = setting("127.0.0.1:0", "address of the KvAgent gRPC server; port 0 = any free one", unit="host:port")
    advertise: str = setting("", "address that other agents reach it at; empty = the listening one", unit="host:port")
    transport: str = setting(
        "auto",
        "how pages travel; auto = the first that both have of: shared memory, UCX with RDMA, plain TCP",
        choices=("auto", "ucx", "ucxx", "tcp"),
    )
    checksum: bool = setting(True, "check every page that arrives against what the source announced")
    lease_s: float = setting(30.0, "how long committed pages wait for a silent reader", unit="s", gt=0)
    connect_timeout_s: float = setting(5.0, "longest time to reach another agent, first read included", unit="s", gt=0)
    open_timeout_s: float = setting(120.0, "longest wait of a reader for the offer of an attempt", unit="s", gt=0)
    stall_timeout_s: float = setting(5.0, "longest time of one read before its source counts as lost", unit="s", gt=0)
    host_tier_bytes: int = setting(
        0, "host memory for cached pages that leave the worker's pool; 0 = they are computed again", unit="bytes", ge=0
    )
    disk_tier_path: str = setting(
        "", "folder of this agent alone for blocks that leave the host tier, which outlive the agent; empty = none"
    )
    disk_tier_bytes: int = setting(0, "disk space for them; the oldest ones are deleted", unit="bytes", ge=0)
    credits: int = setting(4, "announcements of one handoff that may be unanswered", ge=1, le=1024, rare=True)
    announce_bytes: int = setting(8 << 20, "largest range of one announcement", unit="bytes", ge=1, rare=True)
    pair_bytes: int = setting(64 << 20, "bytes in flight from one source", unit="bytes", ge=1, rare=True)
    staging_bytes: int = setting(
        8 << 20,
        "memory for pages of another layout on their way, per source that has such",
        unit="bytes",
        ge=2,
        rare=True,
    )
    fault_injection: bool = setting(
        False, "take orders to fail at the Unix socket SOCKET.faults: for tests of Baton only", rare=True
    )

    def tier_limits(self) -> TierLimits:
        return TierLimits(self.host_tier_bytes, self.disk_tier_path, self.disk_tier_bytes)

    def source_limits(self) -> SourceLimits:
        return SourceLimits(
            lease_s=self.lease_s, open_timeout_s=self.open_timeout_s, max_announce_bytes=self.announce_bytes
        )

    def reader_limits(self) -> ReaderLimits:
        return ReaderLimits(stall_timeout_s=self.stall_timeout_s, credits=self.credits)
