"""What keeps count of a key's use, whoever it is.

Rates are leaky buckets kept as one number each, the time until which the bucket is booked (GCRA, ITU-T I.371): a
request of cost n moves it by n / limit of a minute, and is refused where it would come to lie more than a minute ahead.
So a whole minute's worth may come at once, and what is used comes back evenly. Tokens are booked before a request runs,
for its prompt and the longest answer that it allows, and put right when it has ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from baton.gateway.auth.key import ApiKey
from baton.gateway.limits.standing import Standing

MINUTE_S = 60.0
LEASE_S = 30.0  # a gateway that is gone gives its requests' places back this much later
CONCURRENT_RETRY_S = 1.0  # nobody knows when a running request ends


class LimitStore(Protocol):
    """Each call is atomic, whoever else is counting. Raises StoreUnavailable."""

    async def enter(self, key: ApiKey, request_id: str) -> Standing:
        """One more request, which holds a place for LEASE_S. Refused requests change nothing."""

    async def reserve(self, key: ApiKey, tokens: int) -> Standing:
        """Book tokens: at most the limit itself, so that a request which asks for more runs when nothing else does.
        A month's quota takes them where anything of it is left; the last request may go beyond."""

    async def leave(self, key: ApiKey, request_id: str, reserved: int, used: int) -> None:
        """The request has ended: its place is free, and the booking is what it used."""

    async def renew(self, key: ApiKey, request_ids: Sequence[str]) -> None:
        """These requests still run: their places are held for LEASE_S from now."""


def booked(reserved: int, limit: int) -> int:
    """Tokens of a reservation that the rate bucket took."""
    return min(reserved, limit)
