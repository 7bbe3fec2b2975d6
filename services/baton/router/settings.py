"""Settings of the router."""

from __future__ import annotations

from typing import ClassVar

from baton.runtime.settings import ServiceSettings, setting


class RouterSettings(ServiceSettings):
    section: ClassVar[str] = "router"

    listen: str = setting("127.0.0.1:7000", "address of the gRPC server; port 0 = any free one", unit="host:port")
    workers: list[str] = setting([], "workers to connect to besides the registered ones: host:port,host:port")
    router_id: str = setting("", "name that workers see in their logs; empty = host and process", rare=True)
    deadline_s: float = setting(600.0, "total time of a request that names none", unit="s", gt=0)
    queue_s: float = setting(
        60.0, "longest wait for a worker with room; longer than a worker's restart takes", unit="s", gt=0
    )
    first_token_s: float = setting(
        60.0, "longest wait for the first token, on top of four times what was predicted", unit="s", gt=0
    )
    handoff_s: float = setting(60.0, "from the first token until decode holds the KV cache", unit="s", gt=0)
    stall_s: float = setting(60.0, "longest pause between two tokens before the request moves on", unit="s", gt=0)
    suspect_s: float = setting(
        5.0, "a connected worker silent for longer gets new requests only when no other can", unit="s", gt=0
    )
    max_attempts: int = setting(8, "placements of one request before it fails", ge=1)
    max_queued: int = setting(2048, "requests that wait for a worker; further ones are refused at once", ge=1)
    backlog_s: float = setting(
        4.0, "prefill work queued at one worker before requests wait here, where tenants share fairly", unit="s", gt=0
    )
    local_extend_tokens: int = setting(
        64, "longest uncached suffix that a decode worker extends itself; 0 = never", unit="tokens", ge=0
    )
    inter_token_s: float = setting(0.05, "time per token that placement tries to keep", unit="s", gt=0)
    drain_s: float = setting(10.0, "time that running requests get when the router is stopped", unit="s", ge=0)
