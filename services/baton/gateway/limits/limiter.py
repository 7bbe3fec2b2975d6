"""One request's way through its key's limits, and what happens while Redis is away.

While Redis does not answer, this gateway counts alone (`local`), or lets no limited key through (`refuse`). Either way
no request waits for Redis longer than a fraction of a second, and after a failure none at all for a second.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from baton.core.errors import StoreUnavailable, Unavailable
from baton.gateway import metrics
from baton.gateway.auth.key import ApiKey
from baton.gateway.limits.memory_store import MemoryStore
from baton.gateway.limits.outage import LOCAL, REFUSE
from baton.gateway.limits.standing import Standing, error_of
from baton.gateway.limits.store import LEASE_S, LimitStore

log = structlog.get_logger(__name__)

_RETRY_S = 1.0
_CLOSE_S = 1.0

T = TypeVar("T")


class Limiter:
    """Limits of all keys. `shared`: counts of all gateways; None = this process is all there is."""

    def __init__(self, shared: LimitStore | None = None, outage: str = LOCAL) -> None:
        self._local = MemoryStore()
        self._shared = shared
        self._outage = outage
        self._shared_again_at = 0.0  # monotonic
        self._tickets: set[Ticket] = set()
        self._leaving: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Keep the places of running requests, until cancelled."""
        while True:
            await asyncio.sleep(LEASE_S / 3)
            running: dict[tuple[LimitStore, ApiKey], list[str]] = defaultdict(list)
            for ticket in self._tickets:
                running[ticket.place, ticket.key].append(ticket.request_id)
            for (store, key), ids in running.items():
                try:
                    await store.renew(key, ids)
                except StoreUnavailable as error:
                    self._lost(error)
                    break

    async def close(self) -> None:
        """Wait a little for what is being put right."""
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=_CLOSE_S)

    async def enter(self, key: ApiKey, request_id: str) -> Ticket:
        """A ticket that is in. Raises LimitReached, and Unavailable while nobody can count."""
        ticket = self.ticket(key, request_id)
        await ticket.enter()
        return ticket

    def ticket(self, key: ApiKey, request_id: str) -> Ticket:
        """A ticket that is not in yet."""
        return Ticket(self, self._local, key, request_id)

    async def let_in(self, ticket: Ticket) -> Standing:
        async def ask(store: LimitStore) -> Standing:
            return await store.enter(ticket.key, ticket.request_id)

        ticket.place, standing = await self._ask(ask)
        ticket.book = ticket.place
        if standing.refusal is None:
            self._tickets.add(ticket)
        return standing

    async def reserve(self, ticket: Ticket, tokens: int) -> Standing:
        async def ask(store: LimitStore) -> Standing:
            return await store.reserve(ticket.key, tokens)

        ticket.book, standing = await self._ask(ask)
        return standing

    def leave(self, ticket: Ticket) -> None:
        """At once for whoever calls; the counts follow."""
        self._tickets.discard(ticket)
        task = asyncio.create_task(self._put_right(ticket))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _put_right(self, ticket: Ticket) -> None:
        try:
            await ticket.book.leave(ticket.key, ticket.request_id, ticket.reserved, ticket.used)
            if ticket.place is not ticket.book:
                await ticket.place.leave(ticket.key, ticket.request_id, 0, 0)
        except StoreUnavailable as error:
            self._lost(error)

    async def _ask(self, question: Callable[[LimitStore], Awaitable[T]]) -> tuple[LimitStore, T]:
        """The answer, and whose it is."""
        if self._shared is not None and time.monotonic() >= self._shared_again_at:
            try:
                return self._shared, await question(self._shared)
            except StoreUnavailable as error:
                self._lost(error)
        if self._shared is not None and self._outage == REFUSE:
            raise Unavailable("limits cannot be counted while Redis is away", retry_after_s=_RETRY_S)
        return self._local, await question(self._local)

    def _lost(self, error: StoreUnavailable) -> None:
        metrics.LIMITS_ALONE.inc()
        if time.monotonic() >= self._shared_again_at:
            log.warning("limits are not shared while Redis is away", error=error.message, now=self._outage)
        self._shared_again_at = time.monotonic() + _RETRY_S


class Ticket:
    """A request. `place`: who counts it as running; `book`: who counts its tokens, another one where
    Redis went or came meanwhile. `standing`: what the client is told."""

    def __init__(self, limiter: Limiter, store: LimitStore, key: ApiKey, request_id: str) -> None:
        self.key = key
        self.place = self.book = store
        self.request_id = request_id
        self.standing = Standing()
        self.reserved = 0
        self.used = 0
        self._limiter = limiter

    def take(self, standing: Standing) -> None:
        """Raises LimitReached when it is a refusal."""
        self.standing = standing
        if standing.refusal is not None:
            metrics.LIMITED.labels(standing.refusal.value).inc()
            raise error_of(standing.refusal, self.key, standing.retry_s)

    async def enter(self) -> None:
        """Ask to be let in; then `leave` must follow. Raises LimitReached, and Unavailable while nobody can count."""
        self.take(await self._limiter.let_in(self))

    async def reserve(self, tokens: int) -> None:
        """Book the most that the request may cost. It counts as used until `settle`. Raises LimitReached."""
        self.take(await self._limiter.reserve(self, tokens))
        self.reserved += tokens
        self.used += tokens

    def settle(self, reserved: int, used: int) -> None:
        """Of what was reserved, this much was used."""
        self.used += used - reserved

    def leave(self) -> None:
        """The request has ended."""
        self._limiter.leave(self)
