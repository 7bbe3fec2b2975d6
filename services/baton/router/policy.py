"""Placement: which workers run a request. Pure: no I/O, no clock, no state; a simulator runs the same code.

A request runs on a pair (prefill, decode), or whole on one worker: any unified one, a decode worker that holds all but
a short suffix of it (or when no pair exists), a prefill worker when only one token is wanted, or a vector.

The price of a candidate is in seconds:

    prefill work ahead and the request's own uncached tokens, at the worker's measured rate, or for a prefix that
    another worker holds the time to pull it, or to bring it from memory or disk of the worker's own agent, if that is
    less (policy_pull.py, policy_tiers.py)
  + the part of the handoff that the prompt's computation does not hide (reads overlap layer by layer); less, where
    decode pulls what prefill pulls, from the same worker at the same time
  + the decode side: queue, missing pages, the step time over the target for the next tokens
  + what running whole costs others: the decoding requests of that worker wait while it extends
  + what a pull costs others: the source's link, and pages here that hold something else now
  + a penalty for workers that failed or fell silent lately

The cheapest wins; candidates within a hair of it share by turns. A request that has failed somewhere goes to the
candidates that failed it least, and rather waits for one of those than tries the others again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from baton.router.policy_facts import Held, Limits, RequestFacts, WorkerFacts
from baton.router.policy_pull import Holders, Pull
from baton.router.policy_tiers import restore

PRICED_STEPS = 32  # how many tokens' time a crowded decode batch is charged for
PAGES_AHEAD_TOKENS = 256  # output that a decode worker should have room for at once
PAGE_WAIT_STEPS = 128  # steps until somebody else's pages come free
OTHERS_SHARE = 0.5  # chunked prefill slows the running requests down to about half
PULL_SHARE = 1.0  # of its own time
DECODE_PULL_SHARE = 0.25  # the same: its bytes travel anyway, but now from one worker twice
RESHARD_SHARE = 0.5  # of the transfer's time: pages that come from another layout are copied once more
TIE_S = 0.0005
PAIRED = 8  # of each role, the best ones are tried with each other


@dataclass(frozen=True, slots=True)
class Placement:
    """`prefill` extends the prompt; `decode` is None when the same worker runs the request to its end.

    `extend_tokens` are to be computed, after `pull`; `predicted_s` is the time to the first token. `decode_pull` is
    what decode takes from where prefill pulls it, rather than from prefill afterwards.
    """

    prefill: str
    decode: str | None
    reason: str
    predicted_s: float
    extend_tokens: int
    price_s: float
    pull: Pull | None = None
    decode_pull: Pull | None = None


@dataclass(frozen=True, slots=True)
class NoPlacement:
    """`busy`: there are workers, all full. Otherwise nobody can run it now, for `reason`."""

    busy: bool
    reason: str


def place(
    request: RequestFacts,
    fleet: Sequence[WorkerFacts],
    cached: Mapping[str, Held],
    limits: Limits,
    turn: int,
) -> Placement | NoPlacement:
    """Choose. `cached`: leading tokens of the request that each worker holds. `turn` spreads ties."""
    able = [w for w in fleet if w.can_run(request)]
    if not able:
        return NoPlacement(busy=False, reason=f"no worker for model {request.model!r} is connected")
    holders = Holders(request, able, {worker_id: held.pool for worker_id, held in cached.items()})
    costs = {w.worker_id: _Costs.of(w, request, cached.get(w.worker_id, Held()), holders, limits) for w in able}
    candidates = _candidates(request, able, costs, limits)
    if not candidates:
        return NoPlacement(busy=False, reason="only prefill workers are connected; a decode or unified one is missing")
    least = min(candidate.failures for candidate in candidates)
    open_ones = [c for c in candidates if c.has_room and (c.failures == least or not request.failed)]
    if not open_ones:
        return NoPlacement(busy=True, reason="every worker is full")
    return _cheapest(open_ones, turn).placement


@dataclass(frozen=True, slots=True)
class _Costs:
    """What one worker would cost, apart from its partner. All in seconds but `extend_tokens`."""

    worker: WorkerFacts
    pull: Pull | None
    extend_tokens: int
    extend_s: float
    first_token_s: float
    decode_s: float
    transfer_tokens: int
    has_slot: bool
    backlogged: bool

    @classmethod
    def of(cls, worker: WorkerFacts, request: RequestFacts, held: Held, holders: Holders, limits: Limits) -> _Costs:
        cached = min(held.pool, request.tokens)
        own = restore(worker, request, held)
        pull = holders.best(worker, cached)
        if pull and own.tokens > cached:
            own_saves_s = (own.tokens - cached) / worker.extend_rate - own.seconds
            if pull.tokens <= sum(held) or pull.saved_s < own_saves_s:  # the worker prefers the nearer to as much
                pull = None
        here, seconds = (pull.tokens, pull.seconds) if pull else (own.tokens, own.seconds)
        extend_tokens = request.tokens - min(here, request.tokens - 1)  # the last token is always computed
        extend_s = extend_tokens / worker.extend_rate
        slots = worker.max_running + max(2, worker.max_running // 4)
        return cls(
            worker=worker,
            pull=pull,
            extend_tokens=extend_tokens,
            extend_s=extend_s,
            first_token_s=max(worker.backlog_s, seconds) + extend_s,
            decode_s=_decode_s(worker, request, cached, limits),
            transfer_tokens=request.tokens - cached // worker.page_size * worker.page_size,
            has_slot=not worker.max_running or worker.requests < slots,
            backlogged=worker.backlog_s > limits.backlog_s,
        )

    @property
    def pull_share_s(self) -> float:
        """What a pull costs others."""
        return PULL_SHARE * self.pull.seconds if self.pull else 0.0


@dataclass(frozen=True, slots=True)
class _Candidate:
    placement: Placement
    failures: int
    has_room: bool


def _decode_s(worker: WorkerFacts, request: RequestFacts, cached: int, limits: Limits) -> float:
    """Queue, pages and pressure of one more request on a decode batch."""
    batch = worker.running + worker.pending_requests
    step_s = worker.step_s * (1 + 1 / (8 + batch))  # a step is dominated by the weights, not by one more row
    steps = min(request.remaining, PRICED_STEPS)
    pressure_s = steps * max(0.0, step_s - limits.inter_token_s)
    fullness_s = step_s * (batch + 1) / (worker.max_running or 64)
    queue_s = worker.waiting * step_s * PRICED_STEPS / (worker.max_running or 64)
    tokens = request.tokens + min(request.remaining, PAGES_AHEAD_TOKENS)
    free_pages = worker.free_pages + worker.evictable_pages - worker.pending_pages
    short_of_pages = worker.pages(tokens, cached) > max(0, free_pages)
    return pressure_s + fullness_s + queue_s + (PAGE_WAIT_STEPS * step_s if short_of_pages else 0.0)


def _candidates(
    request: RequestFacts, able: Sequence[WorkerFacts], costs: Mapping[str, _Costs], limits: Limits
) -> list[_Candidate]:
    whole = [(costs[w.worker_id], "unified") for w in able if w.role == "unified"]
    if request.remaining == 1:
        whole += [(costs[w.worker_id], "one token") for w in able if w.role == "prefill"]
    pairs = _pairs(able, costs) if request.remaining > 1 else []
    found = [_whole(cost, request, reason, 0) for cost, reason in whole] + [
        _pair(prefill, decode, request) for prefill, decode in pairs
    ]
    for worker in able:
        cost = costs[worker.worker_id]
        if worker.role != "decode":
            continue
        if cost.extend_tokens < request.tokens and cost.extend_tokens <= limits.local_extend_tokens:
            found.append(_whole(cost, request, "short suffix", 0))
        elif not whole and (not pairs or request.failed):
            # A decode worker can do it all; that is the way out when nothing can be handed over to it.
            found.append(_whole(cost, request, "no pair" if not pairs else "pair failed", 1 if pairs else 0))
    return found


def _pairs(able: Sequence[WorkerFacts], costs: Mapping[str, _Costs]) -> list[tuple[_Costs, _Costs]]:
    """Pairs that can hand over to each other: caches of one model, equal transport."""
    groups: dict[tuple[str, str], list[WorkerFacts]] = defaultdict(list)
    for worker in able:
        if worker.transport:
            groups[worker.kv_model, worker.transport].append(worker)
    pairs = []
    for group in groups.values():
        prefills = _best((costs[w.worker_id] for w in group if w.role == "prefill"), prefill=True)
        decodes = _best((costs[w.worker_id] for w in group if w.role == "decode"), prefill=False)
        pairs += [(prefill, decode) for prefill in prefills for decode in decodes]
    return pairs


def _best(costs: Iterable[_Costs], *, prefill: bool) -> list[_Costs]:
    """The few that are worth pairing: with room first, then by price."""

    def key(cost: _Costs) -> tuple[bool, float, str]:
        price_s = cost.first_token_s if prefill else cost.decode_s
        full = not cost.has_slot or (prefill and cost.backlogged)
        return full, price_s + cost.worker.penalty_s, cost.worker.worker_id

    return sorted(costs, key=key)[:PAIRED]


def _pair(prefill: _Costs, decode: _Costs, request: RequestFacts) -> _Candidate:
    source, sink = prefill.worker, decode.worker
    transfer_s = source.kv_bytes(request.tokens, request.tokens - decode.transfer_tokens) / sink.handoff_rate
    if source.fingerprint != sink.fingerprint:
        transfer_s *= 1 + RESHARD_SHARE
    exposed_s = _exposed_s(prefill, transfer_s)
    decode_pull = _decode_pull(prefill, decode, request, exposed_s)
    saved_s = decode_pull.saved_s if decode_pull else 0.0
    price_s = prefill.first_token_s + exposed_s - saved_s + decode.decode_s + prefill.pull_share_s
    price_s += source.penalty_s + sink.penalty_s
    placement = Placement(
        source.worker_id,
        sink.worker_id,
        "pair",
        prefill.first_token_s,
        prefill.extend_tokens,
        price_s,
        prefill.pull,
        decode_pull,
    )
    failures = request.failed.get(source.worker_id, 0) + request.failed.get(sink.worker_id, 0)
    return _Candidate(placement, failures, prefill.has_slot and not prefill.backlogged and decode.has_slot)


def _exposed_s(prefill: _Costs, transfer_s: float) -> float:
    """The part of a handoff that computing does not hide."""
    layers = max(1, prefill.worker.layers)
    return max(transfer_s / layers, transfer_s - prefill.extend_s * (layers - 1) / layers)


def _decode_pull(prefill: _Costs, decode: _Costs, request: RequestFacts, exposed_s: float) -> Pull | None:
    """What decode had better pull from where prefill pulls it, while prefill does; None when that saves nothing.

    The handoff then brings what is left. `saved_s` is of the handoff's exposed part, not of computing.
    """
    pull, sink = prefill.pull, decode.worker
    held = request.tokens - decode.transfer_tokens
    if pull is None or pull.source in (sink.worker_id, prefill.worker.worker_id) or pull.tokens <= held:
        return None
    if sink.fingerprint != prefill.worker.fingerprint:  # the source's blocks have other names there
        return None
    seconds = sink.pull_s(pull.tokens, held)
    rest_s = sink.kv_bytes(request.tokens, pull.tokens) / sink.handoff_rate
    late_s = max(0.0, seconds - prefill.first_token_s)
    saved_s = exposed_s - _exposed_s(prefill, rest_s) - late_s - DECODE_PULL_SHARE * seconds
    return Pull(pull.source, pull.tokens, seconds, saved_s) if saved_s > 0 else None


def _whole(cost: _Costs, request: RequestFacts, reason: str, handicap: int) -> _Candidate:
    worker = cost.worker
    others_s = OTHERS_SHARE * worker.running * cost.extend_s
    price_s = cost.first_token_s + cost.decode_s + others_s + cost.pull_share_s + worker.penalty_s
    placement = Placement(worker.worker_id, None, reason, cost.first_token_s, cost.extend_tokens, price_s, cost.pull)
    failures = request.failed.get(worker.worker_id, 0) + handicap
    return _Candidate(placement, failures, cost.has_slot and not cost.backlogged)


def _cheapest(candidates: Sequence[_Candidate], turn: int) -> _Candidate:
    best_s = min(candidate.placement.price_s for candidate in candidates)
    limit_s = best_s + TIE_S
    ties = sorted(
        (c for c in candidates if c.placement.price_s <= limit_s),
        key=lambda c: (c.placement.prefill, c.placement.decode or ""),
    )
    return ties[turn % len(ties)]
