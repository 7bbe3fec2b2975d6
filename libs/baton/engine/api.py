"""What goes into the engine and what comes out: plain data, no torch, so that tests and workers can build it by hand.

All engine methods run on one thread, the engine's. A request is known by its attempt. Stages:

    RUN_ALL  extend the prompt, decode to the end, free the pages
    OFFER    extend the prompt, sample the first token, then keep the pages until `release`
    FETCH    reserve pages for what the cache does not hold, wait for `activate`, decode to the end

Any of them may begin with a pull: pages for a prefix that another worker holds are reserved, and the request queues,
with what came in the cache, once `pulled` says that nobody fills them any more. A FETCH is then reserved anew, for what
did not come. The other side of a pull is `lend` and `take_back`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from baton.core.attempt import Attempt
from baton.core.errors import BatonError
from baton.core.pooling import PoolingParams
from baton.core.sampling import SamplingParams
from baton.core.tiers import Tier

if TYPE_CHECKING:
    from baton.engine.grammar.compiler import Grammar


class Stage(enum.Enum):
    RUN_ALL = "run_all"
    OFFER = "offer"
    FETCH = "fetch"


class Finish(enum.Enum):
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One attempt as the engine sees it.

    `token_ids` are the user's prompt and what earlier attempts have emitted; `prompt_tokens` is the prompt's
    length. `root_hash` names the parent of the first block (baton.core.hashing). `pull_tokens`: leading tokens whose KV
    cache is to be pulled as far as it is not here. `grammar`: of `sampling.structure`, compiled.
    `pooling`: the answer is a vector, and no token is drawn; with stage RUN_ALL only, and `sampling` means nothing.
    """

    attempt: Attempt
    token_ids: Sequence[int]
    prompt_tokens: int
    sampling: SamplingParams
    root_hash: bytes
    stage: Stage = Stage.RUN_ALL
    priority: int = 0
    pull_tokens: int = 0
    grammar: Grammar | None = None
    pooling: PoolingParams | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Logprob of one token and of the most likely ones at its position: `top` is (token id, logprob), best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class RowOutput:
    """New tokens of one attempt in one step. `prompt_logprobs` comes once, with the first token: positions 1.. .

    A pooling request has one row, without tokens: its answer is `vector`, its finish STOP.
    """

    attempt: Attempt
    token_ids: list[int]
    finish: Finish | None = None
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    vector: list[float] | None = None


@dataclass(frozen=True, slots=True)
class Admitted:
    """The attempt left the queue: it has pages, and `cached_tokens` of its prompt were in the cache.

    `pulled_tokens` of them had come from another worker for this attempt.
    """

    attempt: Attempt
    cached_tokens: int
    queued_s: float
    pulled_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Reserved:
    """The worker may fetch, or pull. Pages before `first_page` are held; `page_ids` are to be filled, in order. Of
    models whose layers are in groups, these are the pages of a handoff (`KvLayout.tails`).

    `block_hashes` name what goes into them when it is a pull, of the first `tokens`: the blocks that are not held, one
    after another; empty: it is a handoff. `tiers`: where the own agent should have them, by page; empty: they are
    elsewhere. What is brought from there has a name for each page, and if there are other pages than those of blocks,
    it comes as a whole or not at all. Without it, `usable_tokens` could be used.
    """

    attempt: Attempt
    first_page: int
    page_ids: list[int]
    block_hashes: list[bytes] = field(default_factory=list)
    tiers: list[Tier] = field(default_factory=list)
    tokens: int = 0
    usable_tokens: int = 0

    @property
    def from_tier(self) -> bool:
        return bool(self.tiers)


@dataclass(frozen=True, slots=True)
class MovedOut:
    """Blocks that left the cache for the host tier. Their pages stay as they are until `moved` names the batch."""

    number: int
    block_hashes: list[bytes]
    page_ids: list[int]


@dataclass(frozen=True, slots=True)
class Loan:
    """Cached pages of the first `tokens` that stay as they are until `take_back`: those of a handoff, both lists from
    the first one on."""

    page_ids: list[int]
    generations: list[int]
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """The attempt is over; its pages are free, but those of an announced OFFER stay held until `release`."""

    attempt: Attempt
    error: BatonError


@dataclass(frozen=True, slots=True)
class BoundedCounts:
    """Of layers with windows or states: pages that requests went past, and snapshots of states that were made, that
    requests went on from, and that were evicted."""

    passed_pages: int = 0
    snapshots_made: int = 0
    snapshots_reused: int = 0
    snapshots_evicted: int = 0

    def since(self, before: BoundedCounts) -> BoundedCounts:
        return BoundedCounts(
            self.passed_pages - before.passed_pages,
            self.snapshots_made - before.snapshots_made,
            self.snapshots_reused - before.snapshots_reused,
            self.snapshots_evicted - before.snapshots_evicted,
        )


@dataclass(slots=True)
class StepOutput:
    """All that one step did, in order of happening within each list."""

    rows: list[RowOutput] = field(default_factory=list)
    admitted: list[Admitted] = field(default_factory=list)
    reserved: list[Reserved] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    stored_blocks: list[bytes] = field(default_factory=list)
    removed_blocks: list[bytes] = field(default_factory=list)
    tiered_blocks: list[tuple[bytes, Tier]] = field(default_factory=list)  # not in the pool, but there
    moved_out: list[MovedOut] = field(default_factory=list)
    extend_tokens: int = 0  # prompt tokens computed in this step
    decode_rows: int = 0
    preempted: int = 0
    duration_s: float = 0.0
    mask_s: float = 0.0  # spent on masks of grammars, beside the model
    clipped: int = 0  # numbers of K and V that a float8 cache was too narrow for
    bounded: BoundedCounts = BoundedCounts()  # since the output before
    forced_tokens: int = 0  # of `rows`: those that a grammar left no choice for, and no step was needed to draw


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """A snapshot for the router's policy and for metrics."""

    running: int
    waiting: int
    free_pages: int
    evictable_pages: int
    lent_pages: int  # held by requests or promised to them, cached pages that nobody uses not counted
    waiting_extend_tokens: int
    extend_tokens_per_s: float
    decode_step_s: float
    tier_blocks: int = 0  # in the host tier; of models whose blocks have pages of several kinds, those
    cached_pages: Mapping[str, int] = field(default_factory=dict)  # by kind: full, window (and chunk), state
    snapshots: int = 0  # of states, that are cached


class HandoffListener(Protocol):
    """Told which pages of OFFER requests have their final bytes, by the thread that runs the model, while it does.

    Must not block. Ranges of one attempt never overlap; together they cover every layer and page of the prompt
    before the step that samples the first token returns.
    """

    def offered(self, attempt: Attempt, tokens: int) -> None: ...

    def produced(
        self,
        attempt: Attempt,
        layer_start: int,
        layer_end: int,
        page_start: int,
        page_ids: Sequence[int],
        generations: Sequence[int],
    ) -> None: ...


class StepEngine(Protocol):
    """The engine as workers use it (implemented by baton.engine.engine.EngineCore, and by toys in tests)."""

    def submit(self, request: EngineRequest) -> None:
        """Queue a request. Raises InvalidRequest when it can never run here (too long, unknown token ids, empty)."""

    def activate(self, attempt: Attempt, first_token: int) -> None:
        """Stage FETCH: pages are filled; the attempt decodes from the next step on, starting from `first_token`,
        which another worker has already emitted."""

    def cancel(self, attempt: Attempt) -> bool:
        """Stop computing. Returns True when its pages are free now, False when they stay held until `release`
        (an OFFER that was announced, a FETCH that was reserved and not activated), or until `pulled`. Unknown
        attempts: True.
        "Now" is at the latest when the step under way has ended: until then nobody else gets them."""

    def release(self, attempt: Attempt, *, valid: bool) -> None:
        """Give back the pages of an OFFER (valid: they stay cached) or of a FETCH that failed (not valid)."""

    def pulled(self, attempt: Attempt, tokens: int) -> None:
        """A pull is over, and nobody writes into the reserved pages any more. The attempt's first `tokens` have their
        K and V (whole pages; 0 = nothing came). It queues, unless it was cancelled meanwhile."""

    def lend(self, attempt: Attempt, block_hashes: Sequence[bytes]) -> Loan:
        """Lock the longest prefix that ends with one of `block_hashes`, which follow each other, and after which one
        can go on with what is cached, for somebody who reads its pages under the name `attempt`. An empty loan: there
        is none."""

    def use_tier(self, free_pages: int) -> None:
        """There is a host tier: keep so many pages free by moving blocks there that would be evicted. 0: there is none
        any more, and what it held is lost. Blocks there are announced with their tier."""

    def moved(self, batch: int) -> None:
        """The pages of a batch of `StepOutput.moved_out` are copied, or never will be: they may be reused."""

    def tiered(self, block_hashes: Sequence[bytes], tier: Tier | None) -> None:
        """The agent has these blocks in `tier` now, or not any more (None)."""

    def take_back(self, attempt: Attempt) -> None:
        """Nobody reads a loan any more. No effect when there is none."""

    def step(self) -> StepOutput:
        """Schedule, run, sample, commit. Returns at once with an empty output when there is nothing to do.

        An overlapped engine tells of a step's tokens with the next call, while the step after it runs.
        """

    @property
    def has_work(self) -> bool:
        """False when `step` would do nothing until the next call of another method."""

    def load(self) -> EngineLoad: ...

    def close(self) -> None:
        """Wait for the step under way and end the engine's own thread, if any. Nothing may be called afterwards."""
