"""Counts of this process alone: for gateways without Redis, and while Redis is away."""

from __future__ import annotations

import calendar
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from baton.gateway.auth.key import ApiKey
from baton.gateway.limits.standing import Refusal, Standing
from baton.gateway.limits.store import CONCURRENT_RETRY_S, MINUTE_S, booked

_ROUNDING_S, _ROUNDING_TOKENS = 1e-6, 1e-3


@dataclass(slots=True)
class _Bucket:
    """Booked until `until`, in seconds of the store's clock."""

    until: float = 0.0

    def ahead_s(self, now: float) -> float:
        return max(0.0, self.until - now)

    def wait_s(self, now: float, cost: float, limit: int) -> float:
        """How long until `cost` fits; 0 = now."""
        over_s = self.ahead_s(now) + cost * MINUTE_S / limit - MINUTE_S
        return over_s if over_s > _ROUNDING_S else 0.0

    def book(self, now: float, cost: float, limit: int) -> None:
        self.until = now + max(0.0, self.ahead_s(now) + cost * MINUTE_S / limit)

    def left(self, now: float, limit: int) -> int:
        left = (MINUTE_S - self.ahead_s(now)) / MINUTE_S * limit
        return max(0, int(left + _ROUNDING_TOKENS)) if limit else 0


@dataclass(slots=True)
class _Counts:
    requests: _Bucket = field(default_factory=_Bucket)
    tokens: _Bucket = field(default_factory=_Bucket)
    running: set[str] = field(default_factory=set)
    month: str = ""
    month_tokens: int = 0


class MemoryStore:
    """One event loop. `clock`: seconds since 1970."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._counts: dict[str, _Counts] = {}

    async def enter(self, key: ApiKey, request_id: str) -> Standing:
        now, counts = self._clock(), self._of(key)
        if key.monthly_tokens and counts.month_tokens >= key.monthly_tokens:
            return self._standing(key, now, Refusal.QUOTA, month_left_s(now))
        if key.requests_per_minute and (wait_s := counts.requests.wait_s(now, 1, key.requests_per_minute)):
            return self._standing(key, now, Refusal.REQUESTS, wait_s)
        if key.concurrent and len(counts.running) >= key.concurrent:
            return self._standing(key, now, Refusal.CONCURRENT, CONCURRENT_RETRY_S)
        if key.requests_per_minute:
            counts.requests.book(now, 1, key.requests_per_minute)
        counts.running.add(request_id)
        return self._standing(key, now)

    async def reserve(self, key: ApiKey, tokens: int) -> Standing:
        now, counts, limit = self._clock(), self._of(key), key.tokens_per_minute
        if key.monthly_tokens and counts.month_tokens >= key.monthly_tokens:
            return self._standing(key, now, Refusal.QUOTA, month_left_s(now))
        if limit and (wait_s := counts.tokens.wait_s(now, booked(tokens, limit), limit)):
            return self._standing(key, now, Refusal.TOKENS, wait_s)
        if limit:
            counts.tokens.book(now, booked(tokens, limit), limit)
        counts.month_tokens += tokens
        return self._standing(key, now)

    async def leave(self, key: ApiKey, request_id: str, reserved: int, used: int) -> None:
        now, counts, limit = self._clock(), self._of(key), key.tokens_per_minute
        counts.running.discard(request_id)
        if limit:
            counts.tokens.book(now, used - booked(reserved, limit), limit)
        counts.month_tokens = max(0, counts.month_tokens + used - reserved)

    async def renew(self, key: ApiKey, request_ids: Sequence[str]) -> None:
        """Nothing to do: places end with the process."""

    def _of(self, key: ApiKey) -> _Counts:
        counts = self._counts.setdefault(key.id, _Counts())
        month = month_of(self._clock())
        if counts.month != month:
            counts.month, counts.month_tokens = month, 0
        return counts

    def _standing(self, key: ApiKey, now: float, refusal: Refusal | None = None, retry_s: float = 0.0) -> Standing:
        counts = self._of(key)
        return Standing(
            requests_left=counts.requests.left(now, key.requests_per_minute),
            requests_reset_s=counts.requests.ahead_s(now),
            tokens_left=counts.tokens.left(now, key.tokens_per_minute),
            tokens_reset_s=counts.tokens.ahead_s(now),
            refusal=refusal,
            retry_s=retry_s,
        )


def month_of(now: float) -> str:
    """`2026-11`: the month of a quota, in UTC."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m")


def month_left_s(now: float) -> float:
    """Seconds until the next month begins, in UTC."""
    today = datetime.fromtimestamp(now, UTC)
    _, days = calendar.monthrange(today.year, today.month)
    first = datetime(today.year, today.month, 1, tzinfo=UTC)
    return first.timestamp() + days * 86_400 - now
