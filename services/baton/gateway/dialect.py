"""Which API a request speaks: what its errors and headers must look like."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto

ANTHROPIC_HEADER = "anthropic-version"


class Dialect(Enum):
    OPENAI = auto()
    ANTHROPIC = auto()
    OLLAMA = auto()


def dialect_of(path: str, headers: Mapping[str, str]) -> Dialect:
    """Known by the path; `/v1/models` is in two APIs, and Anthropic's clients are known by a header there."""
    if path.startswith("/v1/messages") or (path.startswith("/v1/models") and ANTHROPIC_HEADER in headers):
        return Dialect.ANTHROPIC
    return Dialect.OLLAMA if path.startswith("/api/") else Dialect.OPENAI
