"""Counts of all gateways together, in Redis. The script limits.lua is the arithmetic; this module carries it there.

{baton:limits:<key id>}:requests|tokens|running|month:<year-month>
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib import resources

from baton.gateway.auth.key import ApiKey
from baton.gateway.limits.memory_store import month_left_s, month_of
from baton.gateway.limits.standing import Refusal, Standing
from baton.gateway.limits.store import CONCURRENT_RETRY_S, LEASE_S
from baton.runtime.redis_client import connect, redis_errors

_ANSWER_S = 0.25  # a request waits this long at most, before this gateway counts alone
_KEEP_MONTH_S = 40 * 86_400


class RedisLimitStore:
    """One event loop; calls may run concurrently. Raises StoreUnavailable. Commands are never repeated: they count."""

    def __init__(self, url: str) -> None:
        self._redis = connect(url, timeout_s=_ANSWER_S, retries=0)
        source = resources.files("baton.gateway.limits").joinpath("limits.lua").read_text()
        self._script = self._redis.register_script(source)

    async def close(self) -> None:
        await self._redis.aclose()

    async def enter(self, key: ApiKey, request_id: str) -> Standing:
        return await self._ask(key, "enter", request_id)

    async def reserve(self, key: ApiKey, tokens: int) -> Standing:
        return await self._ask(key, "reserve", tokens)

    async def leave(self, key: ApiKey, request_id: str, reserved: int, used: int) -> None:
        await self._ask(key, "leave", request_id, reserved, used)

    async def renew(self, key: ApiKey, request_ids: Sequence[str]) -> None:
        await self._ask(key, "renew", *request_ids)

    async def _ask(self, key: ApiKey, what: str, *details: str | int) -> Standing:
        now = time.time()
        prefix = f"{{baton:limits:{key.id}}}:"
        keys = [prefix + name for name in ("requests", "tokens", "running", f"month:{month_of(now)}")]
        limits = (key.requests_per_minute, key.tokens_per_minute, key.concurrent, key.monthly_tokens)
        args = [what, *limits, int(LEASE_S * 1e6), _KEEP_MONTH_S, *details]
        async with redis_errors():
            said, wait_us, requests_left, requests_us, tokens_left, tokens_us = await self._script(keys=keys, args=args)
        refusal = Refusal(said.decode()) if said else None
        waits_s = {Refusal.QUOTA: month_left_s(now), Refusal.CONCURRENT: CONCURRENT_RETRY_S}
        return Standing(
            requests_left=requests_left,
            requests_reset_s=int(requests_us) / 1e6,
            tokens_left=tokens_left,
            tokens_reset_s=int(tokens_us) / 1e6,
            refusal=refusal,
            retry_s=waits_s.get(refusal, int(wait_us) / 1e6) if refusal else 0.0,
        )
