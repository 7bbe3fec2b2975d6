"""`baton unified`: a worker that prefills and decodes in one pool."""

from __future__ import annotations

from baton.worker.desk import NoDesk
from baton.worker.service import serve
from baton.worker.settings import WorkerSettings


async def run(settings: WorkerSettings) -> None:
    """Serve until cancelled."""
    await serve(settings, "unified", NoDesk)
