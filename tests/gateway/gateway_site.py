"""A gateway for a test: its service, and the application on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fake_router import NAME

from baton.gateway.app import create_app
from baton.gateway.server import listen, serve
from baton.gateway.service import Service
from baton.gateway.settings import GatewaySettings
from baton.gateway.text_model import TextModel
from baton.runtime.lifecycle import cancel_and_wait


def make_service(client: object, model: TextModel, **settings: object) -> Service:
    return Service(client, model, NAME, GatewaySettings(**settings))


@asynccontextmanager
async def running(service: Service, drain_s: float = 0.0) -> AsyncIterator[str]:
    """The application on a real server of an ephemeral port. Yields its URL."""
    listener = listen("127.0.0.1", 0)
    serving = asyncio.create_task(serve(create_app(service), listener, drain_s))
    try:
        yield "http://{}:{}".format(*listener.getsockname())
    finally:
        await cancel_and_wait(serving)
