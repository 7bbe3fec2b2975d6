"""The way to Redis: URLs, time limits, errors. What is kept there is the business of those who keep it.

Imported only where a Redis is configured: the library is large.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError

from baton.core.errors import ConfigError, StoreUnavailable

SOCKET_TIMEOUT_S = 5.0


def connect(url: str, *, timeout_s: float = SOCKET_TIMEOUT_S, retries: int = 1) -> redis.Redis:
    """A client of `redis://`, `rediss://` (TLS), `unix://`, or
    `redis+sentinel://[user:password@]host[:port][,host...]/service` with an optional `?db=`.

    It connects on first use. `timeout_s`: longest wait for a connection, or an answer. `retries`: of a command whose
    connection broke; it must then be one that may be repeated. Raises ConfigError for any other URL.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(ExponentialBackoff(cap=0.5, base=0.05), retries=retries),
        "protocol": 2,  # answers have the same shape in all versions of the library and the server
    }
    scheme = url.partition("://")[0]
    if scheme == "redis+sentinel":
        return _sentinel_client(url, options)
    if scheme not in ("redis", "rediss", "unix"):
        raise ConfigError(
            f"redis_url {url!r}: the scheme must be redis, rediss, unix or redis+sentinel"
            + ("; Redis Cluster is not supported: the index is small, one primary with replicas carries it"
               if "cluster" in scheme else "")
        )  # fmt: skip
    try:
        return redis.Redis.from_url(url, **options)
    except ValueError as error:
        raise ConfigError(f"redis_url {url!r}: {error}") from error


def _sentinel_client(url: str, options: dict[str, Any]) -> redis.Redis:
    parts = urlsplit(url)
    service = parts.path.strip("/")
    hosts = [host for host in parts.netloc.rpartition("@")[2].split(",") if host]
    if not service or not hosts:
        raise ConfigError(f"redis_url {url!r} must be redis+sentinel://host[:port][,host...]/service")
    sentinels = []
    for host in hosts:
        name, _, port = host.partition(":")
        if port and not port.isdigit():
            raise ConfigError(f"redis_url {url!r}: {port!r} is not a port")
        sentinels.append((name, int(port or 26379)))
    credentials = parts.netloc.rpartition("@")[0].partition(":")
    database = parse_qs(parts.query).get("db", ["0"])[0]
    if not database.isdigit():
        raise ConfigError(f"redis_url {url!r}: db is {database!r}; it must be a number")
    options |= {
        "username": unquote(credentials[0]) or None,
        "password": unquote(credentials[2]) or None,
        "db": int(database),
    }
    return Sentinel(sentinels, socket_timeout=options["socket_timeout"]).master_for(service, **options)


@asynccontextmanager
async def redis_errors() -> AsyncIterator[None]:
    """Map the library's errors to StoreUnavailable, and give back a cancellation that it has lost.

    The library sends through `asyncio.wait_for`, which before Python 3.12 swallows a cancellation that arrives together
    with its result: the caller would go on and never end.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    failure: Exception | None = None
    try:
        yield
    except (RedisError, OSError) as error:
        failure = error
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
    if failure is not None:
        raise StoreUnavailable(f"Redis: {failure or type(failure).__name__}") from failure


async def awaited(answer: Awaitable[Any] | Any) -> Any:
    """The library types commands for its blocking and asyncio clients together; here they are awaitable."""
    return await answer
