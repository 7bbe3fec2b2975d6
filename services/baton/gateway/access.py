"""Access: who may ask and how much, as this gateway knows it while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import structlog

from baton.gateway.auth.ring import KeyRing, open_ring
from baton.gateway.limits.limiter import Limiter
from baton.gateway.limits.store import LimitStore
from baton.gateway.settings import GatewaySettings
from baton.runtime.lifecycle import cancel_and_wait

log = structlog.get_logger(__name__)

_LOOPBACK = ("127.", "::1", "localhost", "unix:")


@dataclass(frozen=True, slots=True)
class Access:
    """`ring`: the keys; `limiter`: their limits."""

    ring: KeyRing
    limiter: Limiter


@asynccontextmanager
async def open_access(settings: GatewaySettings) -> AsyncIterator[Access | None]:
    """What the settings ask for, kept current while the context lasts; None: no keys are asked for.

    Raises ConfigError when the keys cannot be had.
    """
    async with AsyncExitStack() as stack:
        ring = await open_ring(settings.api_keys, settings.redis_url, stack)
        if ring is None:
            warn_when_open(settings)
            yield None
            return
        limiter = Limiter(await _shared_counts(settings, stack), settings.limits_outage)
        stack.push_async_callback(limiter.close)
        tasks = [asyncio.create_task(ring.run()), asyncio.create_task(limiter.run())]
        stack.push_async_callback(cancel_and_wait, *tasks)
        yield Access(ring, limiter)


def warn_when_open(settings: GatewaySettings) -> None:
    """Listening for other machines without asking who they are is rarely meant."""
    if not settings.host.startswith(_LOOPBACK):
        log.warning(
            "anybody who reaches this port may use the model: no API keys are asked for",
            listening=f"{settings.host}:{settings.port}",
            remedy="baton keys create, then --api-keys; see docs/security.md",
        )


async def _shared_counts(settings: GatewaySettings, stack: AsyncExitStack) -> LimitStore | None:
    if not settings.redis_url:
        return None
    from baton.gateway.limits.redis_store import RedisLimitStore

    store = RedisLimitStore(settings.redis_url)
    stack.push_async_callback(store.close)
    return store
