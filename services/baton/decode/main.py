"""`baton decode`: a worker that fetches KV caches and decodes."""

from __future__ import annotations

from baton.decode.desk import FetchDesk
from baton.worker.service import serve
from baton.worker.settings import WorkerSettings


async def run(settings: WorkerSettings) -> None:
    """Serve until cancelled."""
    await serve(settings, "decode", FetchDesk)
