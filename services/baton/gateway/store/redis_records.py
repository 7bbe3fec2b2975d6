"""Records in Redis, shared by all gateways: `baton:gateway:<key>`, each a string with a time to live."""

from __future__ import annotations

import redis.asyncio as redis

from baton.runtime.redis_client import awaited, connect, redis_errors

_PREFIX = "baton:gateway:"


class RedisRecords:
    """`Records` of one Redis; raises StoreUnavailable while it cannot be reached."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    @classmethod
    def from_url(cls, url: str) -> RedisRecords:
        """As `baton.runtime.redis_client.connect`. Raises ConfigError."""
        return cls(connect(url))

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        async with redis_errors():
            await awaited(self._redis.set(_PREFIX + key, value, px=max(1, round(ttl_s * 1000))))

    async def get(self, key: str) -> bytes | None:
        async with redis_errors():
            value = await awaited(self._redis.get(_PREFIX + key))
        return None if value is None else bytes(value)

    async def delete(self, key: str) -> bool:
        async with redis_errors():
            return bool(await awaited(self._redis.delete(_PREFIX + key)))

    async def close(self) -> None:
        await self._redis.aclose()
