"""When a client should try again, as HTTP says it."""

from __future__ import annotations

import math

from baton.core.errors import BatonError

_RETRY_STATUSES = (429, 503)


def retry_headers(error: BatonError) -> dict[str, str]:
    """Retry-After where trying again makes sense."""
    if error.http_status not in _RETRY_STATUSES:
        return {}
    return {"retry-after": str(max(1, math.ceil(error.retry_after_s or 1)))}
