"""`baton gateway`: the HTTP service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog

from baton.client import BatonClient
from baton.core.errors import ConfigError
from baton.gateway.access import open_access
from baton.gateway.app import create_admin_app, create_app
from baton.gateway.http.https import https_of
from baton.gateway.http.protocol import ConnectionLimits
from baton.gateway.openai.batches.runner import BatchRunner
from baton.gateway.server import listen, serve
from baton.gateway.service import Service
from baton.gateway.settings import GatewaySettings
from baton.gateway.text_model import TextModel
from baton.rpc.tls import tls_of
from baton.runtime.lifecycle import cancel_and_wait

log = structlog.get_logger(__name__)


async def run(settings: GatewaySettings) -> None:
    """Serve until cancelled. Raises ConfigError when the settings, the checkpoint or the port cannot work."""
    if not settings.model:
        raise ConfigError("the gateway needs a checkpoint folder: --model or BATON_GATEWAY_MODEL")
    if not settings.routers:
        raise ConfigError("the gateway needs the address of at least one router: --routers or BATON_GATEWAY_ROUTERS")
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(listen(settings.host, settings.port, unread_s=settings.slow_reader_timeout_s))
        https = https_of(settings)
        model = await asyncio.to_thread(TextModel.load, Path(settings.model))
        client = await stack.enter_async_context(BatonClient(settings.routers, tls=tls_of(settings)))
        service = Service(client, model, settings.served_name or model.name, settings)
        stack.push_async_callback(service.close)
        stack.push_async_callback(cancel_and_wait, asyncio.create_task(service.catalog.run()))
        host, port = listener.getsockname()[:2]
        access = await stack.enter_async_context(open_access(settings))
        if settings.files_dir:
            stack.push_async_callback(cancel_and_wait, asyncio.create_task(BatchRunner(service, access).run()))
        if settings.metrics_port:
            await stack.enter_async_context(_operators_port(settings, service))
        scheme = "http" if https is None else "https"
        log.info("gateway listens", url=f"{scheme}://{host}:{port}", models=service.names, routers=settings.routers)
        limits = ConnectionLimits(settings.max_head_bytes, settings.head_timeout_s, settings.max_connections)
        await serve(create_app(service, access), listener, settings.drain_s, limits, https)


@asynccontextmanager
async def _operators_port(settings: GatewaySettings, service: Service) -> AsyncIterator[None]:
    """Serve the operator's pages while the context lasts."""
    with listen(settings.metrics_host, settings.metrics_port) as listener:
        serving = asyncio.create_task(serve(create_admin_app(service), listener, 0.0))
        try:
            yield
        finally:
            await cancel_and_wait(serving)
