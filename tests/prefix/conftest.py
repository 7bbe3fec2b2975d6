from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from hypothesis import settings

from baton.prefix.records import Namespace
from baton.prefix.redis_store import RedisStore
from baton.testing.redis_server import RedisServer, bundled_redis_server

# Shared machines pause: an example's time says nothing.
settings.register_profile("baton", deadline=None)
settings.load_profile("baton")


def _servers() -> dict[str, Path]:
    """The bundled 6.2, and whatever newer one is installed."""
    found = {"bundled": bundled_redis_server()}
    for name in ("redis-server", "valkey-server"):
        path = shutil.which(name)
        found[name] = Path(path) if path else None
    return {name: path for name, path in found.items() if path}


SERVERS = _servers()


@pytest.fixture(scope="session", params=SERVERS.values(), ids=SERVERS.keys())
def redis_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory() as folder, RedisServer(request.param, Path(folder) / "redis.sock") as server:
        yield server


@pytest.fixture(scope="session")
def any_redis_binary() -> Path:
    if not SERVERS:
        pytest.skip("no Redis server binary on this machine")
    return next(iter(SERVERS.values()))


_ids = itertools.count()


@pytest.fixture
def namespace() -> Namespace:
    """One of its own for every test."""
    return Namespace("tiny", f"rev{next(_ids)}", "0123456789abcdef")


@pytest_asyncio.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    store = RedisStore.from_url(redis_server.url)
    yield store
    await store.close()
