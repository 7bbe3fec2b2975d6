"""What a worker will do about a prefix that lies in its agent's slower tiers: bring it, or compute it. Pure.

The worker decides by the prices that it has measured, and reports those: here they are put to the same rule. So a tier
that is slower than computing attracts nobody.
"""

from __future__ import annotations

from dataclasses import dataclass

from baton.core.tiers import Tier
from baton.kv.tier.price import worth_restoring
from baton.router.policy_facts import Held, RequestFacts, WorkerFacts


@dataclass(frozen=True, slots=True)
class Restore:
    """The worker has the first `tokens` of the request once it has spent `seconds` on bringing them."""

    tokens: int
    seconds: float


def restore(worker: WorkerFacts, request: RequestFacts, held: Held) -> Restore:
    """What `worker` will have in its pool before it computes the rest."""
    end = (request.tokens - 1) // worker.page_size * worker.page_size  # the last token is always computed
    pool = min(held.pool, request.tokens)  # a match that is too long must not make a worker cheaper than free
    host = max(0, min(held.host, end - pool))
    disk = max(0, min(held.disk, end - pool - host))
    parts = [(tier, tokens) for tier, tokens in ((Tier.HOST, host), (Tier.DISK, disk)) if tokens]
    priced = [(tokens, worker.restore_s(tier, tokens)) for tier, tokens in parts]
    chosen, seconds = worth_restoring(priced, worker.extend_rate)
    return Restore(pool + sum(tokens for tokens, _ in priced[:chosen]), seconds)
