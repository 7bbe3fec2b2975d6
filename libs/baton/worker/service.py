"""A worker process in one role: load -> build -> start -> serve until cancelled."""

from __future__ import annotations

import structlog

from baton.worker.desk import MakeDesk
from baton.worker.settings import WorkerSettings

log = structlog.get_logger(__name__)

SERVICE = "baton.rpc.v1.Worker"
GIL_SWITCH_S = 0.0005  # the engine's thread holds the GIL between operators; streams must not wait 5 ms for it


async def serve(settings: WorkerSettings, role: str, make_desk: MakeDesk) -> None:
    """Run a worker until cancelled. Raises ConfigError when it cannot start."""
    raise SystemExit("see below")
