"""What placement knows: facts about workers and requests, as measured, and the settings. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from baton.core.layout import KvLayout
from baton.core.pooling import Task
from baton.core.tiers import Tier
from baton.router.ports import Load

# Used until a worker has measured its own: they only matter relative to each other.
PRIOR_EXTEND_TOKENS_PER_S = 2_000.0
PRIOR_DECODE_STEP_S = 0.02
PRIOR_HANDOFF_BYTES_PER_S = 1e9
PRIOR_PULL_BYTES_PER_S = 1e9
PRIOR_PULL_WAIT_S = 0.005
PRIOR_RESTORE = {Tier.HOST: (0.002, 2e9), Tier.DISK: (0.005, 3e8)}  # seconds of waiting, bytes per second
LEAST_RATE = 1e-3  # tokens or bytes per second: a price stays a number, however little a worker says it gets done


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts(Load):
    """One connected worker and its last report. `pending_*`: decisions that the report does not show yet.

    `transport` is empty while it has no agent. `role`: prefill | decode | unified. Workers of one `kv_model` can hand
    over to each other; those of one `fingerprint` have pages of one layout besides, and the same names of blocks.
    `layout`: of its pages; None: each holds all layers, `kv_bytes_per_token` for each of its tokens.
    """

    worker_id: str
    role: str
    model: str
    fingerprint: str
    kv_model: str
    token_limit: int
    page_size: int = 16
    layers: int = 1
    kv_bytes_per_token: int = 0
    transport: str = ""
    max_running: int = 0
    pending_requests: int = 0
    pending_extend_tokens: int = 0
    pending_pages: int = 0
    penalty_s: float = 0.0
    layout: KvLayout | None = None
    tasks: frozenset[Task] = frozenset({Task.GENERATE})

    def can_run(self, request: RequestFacts) -> bool:
        """Whether the request fits here, were the worker idle. Its output, if it has one, needs a token at least."""
        output_tokens = 1 if request.task is Task.GENERATE else 0
        fits = self.token_limit >= request.tokens + output_tokens
        return self.model == request.model and request.task in self.tasks and fits

    @property
    def requests(self) -> int:
        return self.running + self.waiting + self.pending_requests

    @property
    def extend_rate(self) -> float:
        return _rate(self.extend_tokens_per_s, PRIOR_EXTEND_TOKENS_PER_S)

    @property
    def handoff_rate(self) -> float:
        return _rate(self.handoff_bytes_per_s, PRIOR_HANDOFF_BYTES_PER_S)

    @property
    def backlog_s(self) -> float:
        """Prefill work ahead of a new request."""
        return (self.waiting_extend_tokens + self.pending_extend_tokens) / self.extend_rate

    def pages(self, tokens: int, held: int = 0) -> int:
        """Pages that the token after so many needs, less those of the first `held` tokens' whole blocks. What layers
        with windows and states need is not less for that."""
        whole = held // self.page_size
        if self.layout is None or not self.layout.groups:
            return -(-tokens // self.page_size) - whole
        return self.layout.pages_for(tokens) - whole * self.layout.has_full

    def kv_bytes(self, tokens: int, held: int = 0) -> int:
        """Of what the token after so many needs, to who has the first `held`."""
        if self.layout is None or not self.layout.groups:
            return (tokens - held) * self.kv_bytes_per_token
        return self.pages(tokens, held) * self.page_size * self.kv_bytes_per_token

    def pull_s(self, tokens: int, held: int = 0) -> float:
        """Time to pull so many tokens' KV cache from another worker, but for the first `held`."""
        size = self.kv_bytes(tokens, held)
        return (self.pull_wait_s or PRIOR_PULL_WAIT_S) + size / _rate(self.pull_bytes_per_s, PRIOR_PULL_BYTES_PER_S)

    def restore_s(self, tier: Tier, tokens: int) -> float:
        """Time to bring so many tokens' KV cache from a tier of the worker's own agent."""
        wait_s, rate = {
            Tier.HOST: (self.host_restore_wait_s, self.host_restore_bytes_per_s),
            Tier.DISK: (self.disk_restore_wait_s, self.disk_restore_bytes_per_s),
        }[tier]
        if not rate:
            wait_s, rate = PRIOR_RESTORE[tier]
        return wait_s + self.kv_bytes(tokens) / max(LEAST_RATE, rate)

    @property
    def step_s(self) -> float:
        return self.decode_step_s or PRIOR_DECODE_STEP_S


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """`tokens`: prompt and what was emitted. `remaining`: tokens still wanted; 1 of a pooling request. `failed`: by
    worker, how often."""

    model: str
    tokens: int
    remaining: int
    failed: Mapping[str, int] = field(default_factory=dict)
    task: Task = Task.GENERATE


class Held(NamedTuple):
    """Leading tokens of a request that a worker has: in its pool, and those that follow in memory and on disk of its
    agent."""

    pool: int = 0
    host: int = 0
    disk: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """The settings that placement knows (settings.py)."""

    backlog_s: float = 4.0
    local_extend_tokens: int = 64
    inter_token_s: float = 0.05


def _rate(measured: float, prior: float) -> float:
    return max(LEAST_RATE, measured or prior)
