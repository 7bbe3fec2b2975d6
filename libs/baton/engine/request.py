"""One attempt inside the engine: its tokens, its pages, how far it has come, and when it is over.

Plain state. The scheduler moves it from phase to phase; the ledger fills and empties its page table.
It is planned ahead of what is known: while a step is under way, `planned_len` counts what that step computes, and
`pending` the token that it draws.

    WAITING ──> EXTENDING ──> DECODING ──> over
       │ ^          │  │         │
       │ └──────────┴──┼─────────┘  preempted (never an OFFER)
       │               └──> HELD    OFFER: first token drawn, or cancelled; pages stay until `release`
       └─> FETCHING ──> DECODING    FETCH: pages reserved, until `activate`; cancelled: HELD
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from baton.core.attempt import Attempt
from baton.core.hashing import block_hashes
from baton.core.sampling import SamplingParams
from baton.engine.api import EngineRequest, Finish, Stage, TokenLogprob
from baton.engine.band_cache import Entry
from baton.engine.bands import BandTable
from baton.engine.grammar.matcher import Matcher
from baton.engine.pooling.pooler import Pooled
from baton.engine.radix import Node
from baton.engine.states import StateTable
from baton.engine.token_counts import TokenCounts


class IntArray:
    """Integers that grow at their end: append is amortised O(1), `view` is a slice without a copy."""

    __slots__ = ("_buffer", "_size")

    def __init__(self, values: npt.NDArray[Any]) -> None:
        """Takes `values` over as its first buffer."""
        self._buffer = values
        self._size = len(values)

    def __len__(self) -> int:
        return self._size

    @property
    def view(self) -> npt.NDArray[Any]:
        """The values, valid until the next append or extend."""
        return self._buffer[: self._size]

    def append(self, value: int) -> None:
        self._room(1)
        self._buffer[self._size] = value
        self._size += 1

    def extend(self, values: Sequence[int]) -> None:
        self._room(len(values))
        self._buffer[self._size : self._size + len(values)] = values
        self._size += len(values)

    def clear(self) -> None:
        self._size = 0

    def _room(self, extra: int) -> None:
        wanted = self._size + extra
        if wanted > len(self._buffer):
            grown = np.empty(max(2 * len(self._buffer), wanted, 16), dtype=self._buffer.dtype)
            grown[: self._size] = self._buffer[: self._size]
            self._buffer = grown


class Phase(enum.Enum):
    WAITING = "waiting"
    EXTENDING = "extending"
    DECODING = "decoding"
    FETCHING = "fetching"
    HELD = "held"
    OVER = "over"


@dataclass(slots=True, eq=False)
class RequestState:
    """State of one attempt.

    `stage` becomes RUN_ALL when a FETCH is activated: from then on it is a request like any other.
    `hashes` names the full blocks of `tokens` and grows with them.
    The first `held_blocks` pages belong to the radix cache, under the request's lock on `node`; the rest is its own.
    `bands` are its pages of layers that attend to a part of their past only, `state` those of layers that keep a state,
    if the model has such.
    """

    attempt: Attempt
    stage: Stage
    priority: int
    sampling: SamplingParams
    prompt_tokens: int
    root_hash: bytes
    page_size: int
    arrival: int  # number in order of submission
    arrived_s: float
    tokens: IntArray  # int64
    hashes: list[bytes]
    prompt_logprobs: list[TokenLogprob] | None  # None: not wanted, or already emitted
    token_limit: int  # most tokens, prompt and output, that it may have
    pull_blocks: int = 0  # leading blocks to pull, or being pulled, as far as they are not cached
    pull_tried: bool = False  # it has pulled, or begun without: neither happens twice
    pooled: Pooled | None = None  # what a pooling request has gathered; touched where steps run

    phase: Phase = Phase.WAITING
    pages: IntArray = field(default_factory=lambda: IntArray(np.empty(0, dtype=np.int32)))
    bands: list[BandTable] = field(default_factory=list)
    state: StateTable | None = None
    node: Node | None = None
    held_blocks: int = 0
    announced: bool = False  # its pages are offered to another worker: they stay as they are until `release`
    sealed: bool = False  # an announced page duplicates a cached one: nothing more is shared before `release`
    arriving: list[int] = field(default_factory=list)  # own pages for a pull, beside those of `pages`
    from_tier: bool = False  # what it pulls comes from the own agent: `lacking` goes into `arriving`
    lacking: list[Entry] = field(default_factory=list)
    kept: list[Entry] = field(default_factory=list)  # what is here of the same prefix, locked until that has come
    usable_blocks: int = 0  # that it found in the cache when it got its pages
    computed_len: int = 0  # leading tokens whose K and V are in the pages
    planned_len: int = 0  # the same once the steps under way have ended: the next step's cached_len
    pending: int = 0  # tokens that steps under way draw, which follow `tokens`: at most 1 whenever a step is planned
    token_place: int = 0  # where the step that drew last put its token (baton.engine.drawing)
    counts: TokenCounts | None = None  # made when it first draws, if it is penalized
    table_revision: int = 0  # changes when an entry of `pages` does; not when some are added
    matcher: Matcher | None = None  # its place in its grammar, if it has one
    awaits_jump: bool = False  # what follows the token under way is certain: it is planned again when that is known
    jumping: bool = False  # the extension under way is of such tokens, and nothing of a prompt

    hint_blocks: int = 0  # last known length of the cached prefix
    passes: int = 0  # admissions that went ahead of it while it did not fit
    pulled_tokens: int = 0  # that a pull has brought
    owed_tokens: int = 0  # its part of the load's waiting_extend_tokens
    admitted_before: bool = False

    @classmethod
    def of(
        cls,
        request: EngineRequest,
        arrival: int,
        arrived_s: float,
        page_size: int,
        most_tokens: int = 1 << 62,
        pooled: Pooled | None = None,
    ) -> RequestState:
        """`most_tokens`: what the engine allows any request, prompt and output. `pooled`: of a pooling request."""
        tokens = np.array(request.token_ids, dtype=np.int64)
        fresh = len(tokens) == request.prompt_tokens and request.stage is not Stage.FETCH
        return cls(
            attempt=request.attempt,
            stage=request.stage,
            priority=request.priority,
            sampling=request.sampling,
            prompt_tokens=request.prompt_tokens,
            root_hash=request.root_hash,
            page_size=page_size,
            arrival=arrival,
            arrived_s=arrived_s,
            tokens=IntArray(tokens),
            hashes=block_hashes(request.root_hash, tokens.tolist(), page_size),
            prompt_logprobs=[] if fresh and request.sampling.prompt_logprobs is not None else None,
            token_limit=min(request.prompt_tokens + request.sampling.max_tokens, most_tokens),
            pull_blocks=request.pull_tokens // page_size,
            matcher=request.grammar.matcher() if request.grammar is not None else None,
            pooled=pooled,
        )

    @property
    def rank(self) -> tuple[int, int]:
        """Order of importance: higher priority, then earlier arrival. Unique."""
        return (-self.priority, self.arrival)

    @property
    def output(self) -> npt.NDArray[Any]:
        """Tokens emitted so far, by all attempts; valid until the next append."""
        return self.tokens.view[self.prompt_tokens :]

    @property
    def output_len(self) -> int:
        """Tokens emitted so far, by all attempts."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def planned_tokens(self) -> int:
        """Tokens that it has once the steps under way have ended."""
        return len(self.tokens) + self.pending

    @property
    def ends_for_sure(self) -> bool:
        """The token under way is its last here, whichever it is."""
        return self.pending > 0 and (self.stage is Stage.OFFER or self.planned_tokens >= self.token_limit)

    @property
    def may_jump(self) -> bool:
        """Tokens without a choice may be appended without being drawn. Each token's logprobs come from its own draw,
        and a handoff passes on one token."""
        return self.stage is not Stage.OFFER and self.sampling.top_logprobs is None

    @property
    def computing(self) -> bool:
        """Results of a step count for it. False for one that was cancelled or has failed in the meantime."""
        return self.phase is Phase.EXTENDING or self.phase is Phase.DECODING

    @property
    def decodes_here(self) -> bool:
        """It will need pages for tokens that are drawn."""
        return self.stage is not Stage.OFFER and self.pooled is None

    @property
    def remaining(self) -> int:
        """Tokens of the prompt that no step has taken up yet."""
        return len(self.tokens) - self.planned_len

    @property
    def cacheable_blocks(self) -> int:
        """Most leading blocks that it may take from the cache.

        A FETCH may hold the whole prompt already. All others compute at least one token, for its logits. Prompt
        logprobs need the logits of all of the prompt, so a request that wants them takes nothing from the cache;
        nor does a pooling request that needs the hidden states of all tokens.
        """
        if self.wants_all:
            return 0
        return (len(self.tokens) - (self.stage is not Stage.FETCH)) // self.page_size

    @property
    def wants_all(self) -> bool:
        """What the model makes of each token of the prompt is wanted, and not only of the last one."""
        return self.prompt_logprobs is not None or (self.pooled is not None and self.pooled.needs_all)

    def append(self, token_id: int) -> None:
        """Add an output token; names the block that it completes."""
        self.tokens.append(token_id)
        if len(self.tokens) % self.page_size == 0:
            parent = self.hashes[-1] if self.hashes else self.root_hash
            block = self.tokens.view[-self.page_size :].tolist()
            self.hashes += block_hashes(parent, block, self.page_size)

    def finish(self, eos_token_ids: frozenset[int]) -> Finish | None:
        """Whether the last token, an output token, ends the request. The first `min_tokens` outputs never stop it,
        but where a grammar is at its end nothing can follow."""
        token_id = int(self.tokens.view[-1])
        params = self.sampling
        if self.matcher is not None and token_id in eos_token_ids:
            return Finish.STOP
        ends = token_id in params.stop_token_ids or (token_id in eos_token_ids and not params.ignore_eos)
        if ends and self.output_len > params.min_tokens:
            return Finish.STOP
        return Finish.LENGTH if len(self.tokens) >= self.token_limit else None
