"""What goes into the client and what comes out: plain data, no generated types."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from baton.core.attempt import new_request_id
from baton.core.pooling import PoolingParams, Task
from baton.core.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One request. `request_id` must not be in use; the default is a fresh one.

    `deadline_s`: total time allowed, None = the router's default. `tenant`: whose fair share it uses.
    `cache_salt`: prefixes are shared only among requests of equal salt. `priority`: higher runs first.
    `traceparent`: the W3C trace context that the request belongs to, if it is traced.
    A `sampling.seed` of 0 means "any": the client picks one, so that a retry draws the same tokens.
    `pooling`: the answer is a vector, and `sampling` means nothing.
    """

    model: str
    prompt_token_ids: Sequence[int]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    request_id: str = field(default_factory=new_request_id)
    deadline_s: float | None = None
    tenant: str = ""
    cache_salt: str = ""
    priority: int = 0
    lora: str = ""
    traceparent: str = ""
    pooling: PoolingParams | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Logprob of one token; `top` holds (token id, logprob) of the most likely ones at its position, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokensEvent:
    """New tokens. `logprobs`: one per token, None when not asked for. `prompt_logprobs`: once, with the first tokens,
    for prompt positions 1.. (position 0 has none). With the first tokens, for callers that cancel before FinishedEvent
    tells all: `cached_tokens`, how many of the prompt's were cached, and the two workers."""

    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    cached_tokens: int | None = None
    prefill_worker: str = ""
    decode_worker: str = ""
    vector: list[float] | None = None  # of a pooling request, which has no tokens


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts are over all attempts; workers and handoff figures are those of the last one."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queued_s: float = 0.0
    prefill_worker: str = ""
    decode_worker: str = ""
    handoff_bytes: int = 0
    handoff_s: float = 0.0
    handoff_exposed_s: float = 0.0
    attempts: int = 1


FinishReason: TypeAlias = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class FinishedEvent:
    """The last event. `stop_token_id`: the id that ended it, also the last token; None unless reason is stop."""

    reason: FinishReason
    usage: Usage
    stop_token_id: int | None = None


Event: TypeAlias = TokensEvent | FinishedEvent


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer."""

    request_id: str
    token_ids: list[int]
    reason: FinishReason
    usage: Usage
    stop_token_id: int | None = None
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None


@dataclass(frozen=True, slots=True)
class Pooled:
    """The answer of a pooling request (baton.core.pooling says what it holds)."""

    request_id: str
    vector: list[float]
    usage: Usage


@dataclass(frozen=True, slots=True)
class Model:
    """A served model. `ready`: some placement exists now. `max_context_tokens`: the least of its workers. `tasks`:
    what its workers can do; empty while none is connected."""

    name: str
    max_context_tokens: int
    revision: str
    ready: bool
    tasks: frozenset[Task] = frozenset()


@dataclass(frozen=True, slots=True)
class WorkerTotals:
    """What a worker has done since it started (`epoch`): rates are differences. `handoff_*`: those that it received;
    `handoff_hidden_s` is the part of `handoff_s` that passed while the source was still computing."""

    extend_tokens: int = 0
    cached_tokens: int = 0
    decode_tokens: int = 0
    preemptions: int = 0
    handoffs: int = 0
    handoff_bytes: int = 0
    handoff_s: float = 0.0
    handoff_hidden_s: float = 0.0


@dataclass(frozen=True, slots=True)
class FleetWorker:
    """One worker as the router sees it: its description, and its last report (`silent_s` ago).

    `penalty_s`: by how much placement prefers others, because it failed or is silent. `page_bytes`: of all layers.
    Rates are the worker's own, smoothed; 0 = unknown.
    """

    worker_id: str
    role: str
    address: str
    epoch: int
    connected: bool
    has_agent: bool
    pages: int
    free_pages: int
    evictable_pages: int
    running: int
    waiting: int
    model: str
    transport: str
    version: str = ""
    agent_version: str = ""
    silent_s: float = 0.0
    penalty_s: float = 0.0
    max_running: int = 0
    lent_pages: int = 0
    waiting_extend_tokens: int = 0
    extend_tokens_per_s: float = 0.0
    decode_step_s: float = 0.0
    handoff_bytes_per_s: float = 0.0
    page_bytes: int = 0
    tier_blocks: int = 0
    tier_capacity_blocks: int = 0
    totals: WorkerTotals = field(default_factory=WorkerTotals)


@dataclass(frozen=True, slots=True)
class Fleet:
    """A router's view of its workers. `index_blocks`: blocks known to its mirror of the prefix index. `version`: the
    router's. `unreachable`: addresses of workers that it wants to reach and cannot."""

    workers: tuple[FleetWorker, ...]
    redis_connected: bool
    index_blocks: int
    queued: int
    in_flight: int
    version: str = ""
    unreachable: tuple[str, ...] = ()
