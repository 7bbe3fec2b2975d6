"""The API keys that this gateway knows, kept current while it runs: keys come and go without a restart.

A source that cannot be read leaves the keys that were read last; a gateway that never could read them lets nobody in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import structlog

from baton.core.errors import BatonError, ConfigError, Unauthenticated, Unavailable
from baton.gateway import metrics
from baton.gateway.auth.key import ApiKey, KeyTerms, create, split
from baton.gateway.auth.key_file import KeyFile

log = structlog.get_logger(__name__)

IN_REDIS = "redis"
_POLL_S = 1.0  # how long a revoked key may still open


class KeySource(Protocol):
    async def changed(self) -> list[ApiKey] | None:
        """All keys; None when there was no change since the last call that returned. Raises BatonError."""


class FileSource:
    """A key file, read on a thread: it may lie on a disk far away."""

    def __init__(self, path: Path) -> None:
        self._file = KeyFile(path)

    def __str__(self) -> str:
        return str(self._file)

    async def changed(self) -> list[ApiKey] | None:
        return await asyncio.to_thread(self._file.changed)


class KeyRing:
    """`find` answers from memory; `run` keeps the memory current."""

    def __init__(self, source: KeySource) -> None:
        self._source = source
        self._keys: dict[str, ApiKey] | None = None
        self._nobody, _ = create(KeyTerms(tenant="nobody"))
        self._complaint = ""

    async def run(self) -> None:
        """Look for changes until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(_POLL_S)

    async def refresh(self) -> None:
        """Look for changes now. A source that cannot be read is told once in the log."""
        try:
            keys = await self._source.changed()
        except BatonError as error:
            if error.message != self._complaint:
                log.error("API keys cannot be read; those read before stay in force", error=error.message)
            self._complaint = error.message
            return
        if self._complaint:
            log.info("API keys can be read again")
        self._complaint = ""
        if keys is not None:
            self._replace(keys)

    def find(self, text: str) -> ApiKey:
        """The key that `text` is. Raises Unauthenticated, and Unavailable while no keys could be read yet."""
        if self._keys is None:
            raise Unavailable("the API keys cannot be read yet", retry_after_s=_POLL_S)
        id, secret = split(text) or ("", "")
        key = self._keys.get(id, self._nobody)  # an unknown id costs as much time as a wrong secret
        if not key.opens_with(secret) or key is self._nobody:
            metrics.REFUSED_KEYS.inc()
            raise Unauthenticated("Incorrect API key provided.")
        if key.expires_at and key.expires_at <= time.time():
            metrics.REFUSED_KEYS.inc()
            raise Unauthenticated("This API key has expired.")
        return key

    def known(self, id: str) -> ApiKey:
        """The key of that id, for what it has asked for and now goes on alone. Raises Unauthenticated when it has been
        revoked or has expired, and Unavailable."""
        if self._keys is None:
            raise Unavailable("the API keys cannot be read yet", retry_after_s=_POLL_S)
        key = self._keys.get(id)
        if key is None or (key.expires_at and key.expires_at <= time.time()):
            raise Unauthenticated("The API key that asked for this has been revoked or has expired.")
        return key

    def _replace(self, keys: Sequence[ApiKey]) -> None:
        before, self._keys = self._keys, {key.id: key for key in keys}
        metrics.KEYS.set(len(self._keys))
        log.info("API keys read", source=str(self._source), keys=len(keys), before=len(before or ()))


async def open_ring(api_keys: str, redis_url: str, stack: AsyncExitStack) -> KeyRing | None:
    """The ring that the setting `api_keys` asks for, read once; None = everybody may ask.

    Raises ConfigError: there is no Redis for keys in Redis, or the file cannot be read.
    """
    if not api_keys:
        return None
    source: KeySource
    if api_keys == IN_REDIS:
        if not redis_url:
            raise ConfigError("api_keys = redis needs a Redis: --redis-url or BATON_GATEWAY_REDIS_URL")
        from baton.gateway.auth.key_store import KeyStore

        source = store = KeyStore(redis_url)
        stack.push_async_callback(store.close)
    else:
        KeyFile(Path(api_keys)).read()  # a wrong path is an error now, not at the first request
        source = FileSource(Path(api_keys))
    ring = KeyRing(source)
    await ring.refresh()
    return ring
