"""Where the requests of batches run: few at a time, after everybody else's, within their keys' limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from baton.core.errors import BatonError
from baton.gateway.access import Access
from baton.gateway.auth.key import ApiKey
from baton.gateway.limits.limiter import Ticket
from baton.gateway.openai.batches.batch import Batch
from baton.gateway.openai.batches.direct import DirectAnswer, Handler, ask, failed
from baton.gateway.tenants import Caller, acting_for

_PRIORITY = -1
_LONGEST_WAIT_S = 30.0


class Lanes:
    """At most `count` requests run at a time, of all batches together; those that wait take turns.

    `handlers`: by path, who answers. `access`: whose keys the gateway asks for; None = nobody's.
    """

    def __init__(self, handlers: Mapping[str, Handler], count: int, access: Access | None) -> None:
        self.count = count
        self._handlers = handlers
        self._free = asyncio.Semaphore(count)
        self._access = access

    async def answer(self, batch: Batch, body: bytes, request_id: str) -> DirectAnswer:
        """The answer to one request. While nobody can serve it, or a limit is reached, it makes room for others, and is
        asked again."""
        wait_s, attempt = 1.0, 0
        while True:
            async with self._free:
                answer = await self._once(batch, body, f"{request_id}-{attempt}" if attempt else request_id)
            if answer.retry_after_s is None:
                return answer
            await asyncio.sleep(min(max(wait_s, answer.retry_after_s), _LONGEST_WAIT_S))
            wait_s, attempt = wait_s * 2, attempt + 1

    async def _once(self, batch: Batch, body: bytes, request_id: str) -> DirectAnswer:
        try:
            key = self._access.ring.known(batch.key_id) if self._access is not None else None
            caller = Caller(batch.tenant, batch.cache_salt, key, _PRIORITY)
            with acting_for(caller):
                async with self._ticket(key, request_id) as ticket:
                    return await ask(self._handlers[batch.endpoint], batch.endpoint, body, request_id, ticket)
        except BatonError as error:
            return failed(error)

    @asynccontextmanager
    async def _ticket(self, key: ApiKey | None, request_id: str) -> AsyncIterator[Ticket | None]:
        if self._access is None or key is None or not key.is_limited:
            yield None
            return
        ticket = await self._access.limiter.enter(key, request_id)
        try:
            yield ticket
        finally:
            ticket.leave()
