"""API keys in Redis, for many gateways on many machines.

{baton:keys}:records   HASH    key id -> JSON of the key
{baton:keys}:version   STRING  counts the changes: what gateways look at once a second
"""

from __future__ import annotations

import msgspec
import structlog

from baton.gateway.auth.key import ApiKey
from baton.runtime.redis_client import awaited, connect, redis_errors

log = structlog.get_logger(__name__)

RECORDS, VERSION = "{baton:keys}:records", "{baton:keys}:version"


class KeyStore:
    """One event loop. Everything raises StoreUnavailable when Redis cannot be reached."""

    def __init__(self, url: str) -> None:
        self._redis = connect(url)
        self._seen: bytes | None = None

    def __str__(self) -> str:
        return "Redis"

    async def close(self) -> None:
        await self._redis.aclose()

    async def changed(self) -> list[ApiKey] | None:
        """All keys; None when there was no change since the last call that returned."""
        async with redis_errors():
            version = await awaited(self._redis.get(VERSION)) or b"0"
        if version == self._seen:
            return None
        keys = await self.read()
        self._seen = version
        return keys

    async def read(self) -> list[ApiKey]:
        """All keys; those that this version of Baton cannot understand are left out."""
        async with redis_errors():
            records = await awaited(self._redis.hvals(RECORDS))
        keys = []
        for record in records:
            try:
                keys.append(msgspec.json.decode(record, type=ApiKey))
            except msgspec.DecodeError as error:
                log.error("an API key in Redis cannot be understood; it opens nothing", error=str(error))
        return keys

    async def add(self, key: ApiKey) -> None:
        async with redis_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(RECORDS, key.id, msgspec.json.encode(key))
            pipe.incr(VERSION)
            await pipe.execute()

    async def remove(self, id: str) -> bool:
        """False when there is no such key."""
        async with redis_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.hdel(RECORDS, id)
            pipe.incr(VERSION)
            removed, _ = await pipe.execute()
        return bool(removed)
