"""Small records that outlive the request that made them: by key, for a limited time. In memory or in Redis."""

from __future__ import annotations

from baton.gateway.store.records import MemoryRecords, Records


def open_records(redis_url: str, limit_bytes: int) -> Records:
    """In the Redis of `redis_url`, or, where there is none, up to `limit_bytes` in memory. Raises ConfigError."""
    if not redis_url:
        return MemoryRecords(limit_bytes)
    from baton.gateway.store.redis_records import RedisRecords

    return RedisRecords.from_url(redis_url)
