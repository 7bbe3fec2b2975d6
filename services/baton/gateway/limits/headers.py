"""A key's standing as each API's headers say it: OpenAI's `x-ratelimit-*`, Anthropic's `anthropic-ratelimit-*`."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from baton.gateway.auth.key import ApiKey
from baton.gateway.dialect import Dialect
from baton.gateway.limits.standing import Standing


def limit_headers(dialect: Dialect, key: ApiKey, standing: Standing) -> dict[str, str]:
    """Headers of any response to a limited key; none in Ollama's API, which has no words for it."""
    rates = [
        ("requests", key.requests_per_minute, standing.requests_left, standing.requests_reset_s),
        ("tokens", key.tokens_per_minute, standing.tokens_left, standing.tokens_reset_s),
    ]
    headers: dict[str, str] = {}
    for what, limit, left, reset_s in rates:
        if not limit:
            continue
        if dialect is Dialect.OPENAI:
            values = {"limit": str(limit), "remaining": str(left), "reset": _duration(reset_s)}
            headers |= {f"x-ratelimit-{name}-{what}": value for name, value in values.items()}
        elif dialect is Dialect.ANTHROPIC:
            values = {"limit": str(limit), "remaining": str(left), "reset": _instant(time.time() + reset_s)}
            headers |= {f"anthropic-ratelimit-{what}-{name}": value for name, value in values.items()}
    return headers


def _duration(seconds: float) -> str:
    """`250ms`, `12s`, `1m0s`."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _instant(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
