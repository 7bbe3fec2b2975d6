"""Where a key stands after a question to its counts, and the errors that come of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from baton.core.errors import LimitReached, QuotaExhausted
from baton.gateway.auth.key import ApiKey


class Refusal(StrEnum):
    """Which limit is in the way."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    CONCURRENT = "concurrent"
    QUOTA = "quota"


@dataclass(frozen=True, slots=True)
class Standing:
    """What is left now, and the seconds until nothing is used up any more. `retry_s`: when to ask again if refused."""

    requests_left: int = 0
    requests_reset_s: float = 0.0
    tokens_left: int = 0
    tokens_reset_s: float = 0.0
    refusal: Refusal | None = None
    retry_s: float = 0.0


def error_of(refusal: Refusal, key: ApiKey, retry_s: float) -> LimitReached:
    """What the client is told."""
    if refusal is Refusal.QUOTA:
        said = f"This API key has used its quota of {key.monthly_tokens} tokens for this month."
        return QuotaExhausted(said, retry_after_s=retry_s)
    limit = {
        Refusal.REQUESTS: f"{key.requests_per_minute} requests per minute",
        Refusal.TOKENS: f"{key.tokens_per_minute} tokens per minute",
        Refusal.CONCURRENT: f"{key.concurrent} requests at once",
    }[refusal]
    said = f"Rate limit reached for this API key: {limit}. Please try again in {retry_s:.3g} s."
    return LimitReached(said, retry_after_s=retry_s)
