"""`baton prefill`: a worker that extends prompts and offers their KV cache."""

from __future__ import annotations

from baton.prefill.desk import OfferDesk
from baton.worker.service import serve
from baton.worker.settings import WorkerSettings


async def run(settings: WorkerSettings) -> None:
    """Serve until cancelled."""
    await serve(settings, "prefill", OfferDesk)
