"""Which tiers of an agent hold which blocks, as its event loop knows it: what the worker is told comes from here.

The tiers themselves belong to threads that copy. Whoever has awaited such a copy notes here what it has changed, in the
order in which copies end.
"""

from __future__ import annotations

from collections.abc import Iterable

from baton.core.tiers import Tier


class Places:
    """Blocks by tier. A block may be in several."""

    TIERS = (Tier.HOST, Tier.DISK)

    def __init__(self) -> None:
        self._held: dict[Tier, set[bytes]] = {tier: set() for tier in self.TIERS}

    def count(self, tier: Tier) -> int:
        return len(self._held[tier])

    def came(self, tier: Tier, block_hashes: Iterable[bytes]) -> None:
        self._held[tier].update(block_hashes)

    def gone(self, tier: Tier, block_hashes: Iterable[bytes]) -> None:
        self._held[tier].difference_update(block_hashes)

    def clear(self, tier: Tier) -> list[bytes]:
        """Nothing is in `tier` any more; returns what was."""
        gone = list(self._held[tier])
        self._held[tier].clear()
        return gone

    def nearest(self, block_hash: bytes) -> Tier | None:
        """The tier that brings the block soonest."""
        return next((tier for tier, held in self._held.items() if block_hash in held), None)

    def by_tier(self, block_hashes: Iterable[bytes]) -> dict[Tier | None, list[bytes]]:
        """The blocks, grouped by their nearest tier."""
        groups: dict[Tier | None, list[bytes]] = {}
        for block_hash in dict.fromkeys(block_hashes):
            groups.setdefault(self.nearest(block_hash), []).append(block_hash)
        return groups
