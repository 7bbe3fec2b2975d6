"""Messages between a worker and its own agent, over a Unix socket.

`traceparent` (W3C Trace Context) is empty where an attempt is not traced.

Frames are a little-endian uint32 length and a msgpack-encoded tagged union. `Hello` travels with the pool's
memfd as ancillary data, and with that of its pages' generations (baton.kv.generations) if the worker shares them.
Page ids and generations are little-endian uint32 arrays, one per page of the request.

    worker (prefill side)              agent               worker (decode side)
    Offer, Produced*, Commit  ------>        <------       Fetch
    Abort                     ------>        <------       CancelFetch
    Released                  <------        ------>       Fetched | FetchFailed

A pull is a handoff of pages that a worker has cached. The reading worker's `Fetch` names their blocks; the source's
agent passes that on as `Wanted`, and its worker answers with Offer, Produced and Commit at once, or with Abort.

An agent may have a host tier, as `Welcome` says. The worker moves cached pages there before it gives them up
(`MoveOut`, answered by `MovedOut`), and has them back by `Restore`, answered by `Restored` or `FetchFailed`. `Placed`
tells where blocks are, whenever that changes: some may be on a disk, from an earlier agent even.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from baton.core.attempt import Attempt
from baton.core.layout import KvLayout
from baton.core.tiers import Tier


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of all local messages."""


class Hello(Message, frozen=True):
    """Worker -> agent, first, with the file descriptors attached: of the pool, and, maybe, of its generations."""

    worker_id: str
    worker_epoch: int
    role: str
    layout: KvLayout
    pages: int


class Welcome(Message, frozen=True):
    """Agent -> worker: the pool is registered. `address` is the agent's gRPC address as peers reach it.

    `tier_blocks`: how many blocks its host tier has room for; 0 = it has none. `version`: of Baton.
    """

    address: str
    agent_epoch: int
    transport: str
    tier_blocks: int = 0
    version: str = ""


class Offer(Message, frozen=True):
    """Prefill: this attempt will be handed over, its pages follow as they are computed. `tokens`: prompt length.

    `offered_at`: wall clock, when computing it began; 0 = not said.
    `reader_ranks`: tensor-parallel ranks of the worker that will take it, each by its own agent.
    """

    attempt: Attempt
    tokens: int
    traceparent: str = ""
    offered_at: float = 0.0
    reader_ranks: int = 1


class Produced(Message, frozen=True):
    """Prefill: pages `page_start ...` of the request hold the final bytes of layers [layer_start, layer_end)."""

    attempt: Attempt
    layer_start: int
    layer_end: int
    page_start: int
    page_ids: bytes
    generations: bytes
    computed_at: float  # wall clock, seconds since 1970


class Commit(Message, frozen=True):
    """Prefill: everything was produced. `state` (first token etc.) is handed to the decode worker as it is."""

    attempt: Attempt
    tokens: int
    state: bytes
    computed_at: float


class Abort(Message, frozen=True):
    """Prefill: the attempt ended without a commit, or its handoff is no longer wanted. Answered by `Released`."""

    attempt: Attempt
    reason: str


class Released(Message, frozen=True):
    """Agent -> prefill: no lease is left on the attempt's pages; the worker may reuse them.

    `outcome`: released (the reader has everything) | aborted | expired.
    """

    attempt: Attempt
    outcome: str
    reason: str


class Wanted(Message, frozen=True):
    """Agent -> worker: somebody wants to pull pages `first_page ...` of the attempt; `block_hashes` name their blocks.

    The worker lends the longest prefix that it holds, and has all pages of that one needs to go on after it, by Offer,
    Produced (from page 0 on) and Commit, and leaves those pages as they are until `Released`; or it says `Abort` when
    there is none that ends with one of the blocks.
    """

    attempt: Attempt
    first_page: int
    block_hashes: bytes


class SourceRank(Message, frozen=True):
    """One rank of a source worker, and the agent that serves it."""

    address: str
    agent_epoch: int
    worker_epoch: int


class Fetch(Message, frozen=True):
    """Decode: read this attempt's pages from `first_page` on into `page_ids` of the own pool.

    With `block_hashes`, one for each of the last blocks, it is a pull: nobody has offered the attempt, and what comes
    may be a shorter prefix of whole blocks (`Fetched.tokens`), whose pages then are the first of `page_ids`.
    `more_ranks`: those after the first of a tensor-parallel source.
    """

    attempt: Attempt
    source_address: str
    source_agent_epoch: int
    source_worker_id: str
    source_worker_epoch: int
    tokens: int
    first_page: int
    page_ids: bytes
    timeout_s: float
    block_hashes: bytes = b""
    traceparent: str = ""
    more_ranks: tuple[SourceRank, ...] = ()


class MoveOut(Message, frozen=True):
    """Worker -> agent: keep these blocks, whose pages stay as they are until `MovedOut`. `batch` names the answer."""

    batch: int
    page_ids: bytes
    block_hashes: bytes


class MovedOut(Message, frozen=True):
    """Agent -> worker: the batch's pages may be reused. What became of its blocks was said by `Placed`."""

    batch: int


class Placed(Message, frozen=True):
    """Agent -> worker: these blocks are in `tier` of the agent now, HOST or DISK, or nowhere (None)."""

    tier: Tier | None
    block_hashes: bytes


class Restore(Message, frozen=True):
    """Worker -> agent: fill `page_ids` of the own pool with the blocks `block_hashes`, pages `first_page ...`."""

    attempt: Attempt
    first_page: int
    page_ids: bytes
    block_hashes: bytes


class RestoredPart(msgspec.Struct, frozen=True, array_like=True):
    """Bytes that one tier has brought, and when (wall clock)."""

    tier: Tier
    bytes_read: int
    started_at: float
    done_at: float


class Restored(Message, frozen=True):
    """Agent -> worker: the first `tokens` of the attempt are there, verified; whole pages, maybe fewer than asked for.

    `parts`: what came, in order.
    """

    attempt: Attempt
    tokens: int
    parts: tuple[RestoredPart, ...]


class CancelFetch(Message, frozen=True):
    """Decode: not wanted any more. Answered by `FetchFailed`, unless `Fetched` was already on its way."""

    attempt: Attempt
    reason: str


class Fetched(Message, frozen=True):
    """Agent -> decode: all bytes are there, verified, and the source's lease was alive after the last read."""

    attempt: Attempt
    tokens: int
    state: bytes
    bytes_read: int
    first_read_at: float  # wall clock: first read started
    first_arrival_at: float  # wall clock: first announcement's bytes were there; 0 when nothing had to be read
    computed_at: float  # wall clock: source computed the last layer
    done_at: float  # wall clock: verified


class FetchFailed(Message, frozen=True):
    """Agent -> decode: the handoff failed; no operation on the attempt's pages is in flight any more."""

    attempt: Attempt
    reason: str


WorkerMessage: TypeAlias = Hello | Offer | Produced | Commit | Abort | Fetch | CancelFetch | MoveOut | Restore
AgentMessage: TypeAlias = Welcome | Released | Wanted | Fetched | FetchFailed | MovedOut | Placed | Restored
