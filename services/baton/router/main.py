"""`baton router`: a router that serves until cancelled."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from baton.router.service import RouterService
from baton.router.settings import RouterSettings
from baton.runtime import metrics


async def run(settings: RouterSettings) -> None:
    """Serve until cancelled; cancelling is the graceful stop. Raises ConfigError for settings that cannot work."""
    async with AsyncExitStack() as stack:
        if settings.metrics_port:
            await stack.enter_async_context(metrics.serve(settings.metrics_host, settings.metrics_port))
        service = RouterService(settings)
        try:
            await service.start()
            await asyncio.Event().wait()
        finally:
            await service.stop(settings.drain_s)
