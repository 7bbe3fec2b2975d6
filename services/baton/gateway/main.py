"""`baton gateway`: the HTTP service."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import structlog

from baton.client import BatonClient
from baton.core.errors import ConfigError
from baton.gateway.access import open_access
from baton.gateway.app import create_app
from baton.gateway.server import listen, serve
from baton.gateway.service import Service
from baton.gateway.settings import GatewaySettings
from baton.gateway.text_model import TextModel
from baton.runtime import metrics
from baton.runtime.lifecycle import cancel_and_wait

log = structlog.get_logger(__name__)


async def run(settings: GatewaySettings) -> None:
    """Serve until cancelled. Raises ConfigError when the settings, the checkpoint or the port cannot work."""
    if not settings.model:
        raise ConfigError("the gateway needs a checkpoint folder: --model or BATON_GATEWAY_MODEL")
    if not settings.routers:
        raise ConfigError("the gateway needs the address of at least one router: --routers or BATON_GATEWAY_ROUTERS")
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(listen(settings.host, settings.port))
        if settings.metrics_port:
            await stack.enter_async_context(metrics.serve(settings.metrics_host, settings.metrics_port))
        model = await asyncio.to_thread(TextModel.load, Path(settings.model))
        client = await stack.enter_async_context(BatonClient(settings.routers))
        service = Service(client, model, settings.served_name or model.name, settings)
        stack.push_async_callback(service.close)
        stack.push_async_callback(cancel_and_wait, asyncio.create_task(service.catalog.run()))
        host, port = listener.getsockname()[:2]
        access = await stack.enter_async_context(open_access(settings))
        log.info("gateway listens", url=f"http://{host}:{port}", models=service.names, routers=settings.routers)
        await serve(create_app(service, access), listener, settings.drain_s)
