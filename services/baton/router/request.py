"""One request and its present attempt: plain state, which lifecycle.py moves on."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from baton.core.attempt import Attempt
from baton.core.errors import BatonError
from baton.core.pooling import PoolingParams, Task
from baton.core.sampling import SamplingParams
from baton.router.index import BlockNames
from baton.router.policy import Placement
from baton.router.ports import Finish, Handoff, Row, WorkerPort
from baton.router.traces import RequestTrace


@dataclass(frozen=True, slots=True)
class Submission:
    """What a caller asks for. `emitted`: output that the caller has already (it comes back after a lost router).

    `first_attempt`: number of the first placement; a caller that comes back passes a larger one than before.
    """

    request_id: str
    model: str
    prompt: Sequence[int]
    sampling: SamplingParams
    deadline_s: float
    emitted: Sequence[int] = ()
    tenant: str = ""
    cache_salt: str = ""
    priority: int = 0
    lora: str = ""
    first_attempt: int = 0
    traceparent: str = ""
    pooling: PoolingParams | None = None  # the answer is one vector; `sampling.max_tokens` is 1

    @property
    def task(self) -> Task:
        return Task.GENERATE if self.pooling is None else self.pooling.task


@dataclass(slots=True)
class Usage:
    """What a request has cost. Workers, cache and handoff figures are those of the last attempt."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    queued_s: float = 0.0
    attempts: int = 0
    prefill_worker: str = ""
    decode_worker: str = ""
    handoff: Handoff = field(default_factory=lambda: Handoff(0, 0.0, 0.0))


class Sink(Protocol):
    """Where a request's events go: any number of tokens, or one vector, then one of the others. Must not block or
    raise."""

    def on_tokens(self, attempt: int, row: Row) -> None: ...

    def on_finished(self, attempt: int, finish: Finish, stop_token_id: int, usage: Usage) -> None: ...

    def on_error(self, attempt: int, error: BatonError) -> None: ...


class TimerHandle(Protocol):
    def when(self) -> float: ...

    def cancel(self) -> None: ...


class Clock(Protocol):
    """Time and timers: an asyncio event loop has them, tests bring their own."""

    def time(self) -> float: ...

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> TimerHandle: ...


class Phase(enum.Enum):
    """Where a request is; each phase has its deadline."""

    QUEUED = "queued"  # waits for a placement
    PAUSED = "paused"  # waits before it is placed again
    PREFILL = "prefill"  # waits for the first token of its attempt
    HANDOFF = "handoff"  # the first token is out; decode has not said yet that it holds the KV cache
    DECODE = "decode"  # tokens come
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Ticket:
    """An attempt's place on one worker."""

    worker_id: str
    port: WorkerPort
    ref: int


@dataclass(slots=True, eq=False)
class Run:
    """One attempt in flight. `decode` is None when one worker runs it whole.

    `is_verified`: decode holds the KV cache, and from here on the attempt depends on it alone.
    `decode_failure`: decode gave up before prefill's first token; that one is still worth waiting for.
    Rows of decode that arrive before prefill's first token are `held` back: the two come by different streams.
    """

    attempt: Attempt
    placement: Placement
    prefill: Ticket | None = None
    decode: Ticket | None = None
    has_first_token: bool = False
    is_verified: bool = False
    decode_failure: BatonError | None = None
    held: list[Row] = field(default_factory=list)

    def take(self, row: Row, *, is_decode: bool) -> list[Row]:
        """One more row of either worker: the rows that may go to the caller now, in order."""
        if is_decode:
            self.is_verified = True
            if self.has_first_token:
                return [row]
            self.held.append(row)
            return []
        self.has_first_token = True
        ready, self.held = [row, *self.held], []
        return ready


@dataclass(slots=True, eq=False)
class Request:
    """State of one request. Phases change in lifecycle.py only.

    `tokens`: the prompt, then all that was emitted: what the next attempt starts from.
    """

    asked: Submission
    sink: Sink
    arrived_at: float
    phase_since: float
    tokens: list[int]
    usage: Usage
    trace: RequestTrace
    phase: Phase = Phase.QUEUED
    run: Run | None = None
    failed: Counter[str] = field(default_factory=Counter)  # worker id -> attempts that it failed
    names: dict[str, BlockNames] = field(default_factory=dict)
    last_token_at: float | None = None
    has_prompt_logprobs: bool = False
    timer: TimerHandle | None = None

    @classmethod
    def of(cls, asked: Submission, sink: Sink, now: float) -> Request:
        usage = Usage(prompt_tokens=len(asked.prompt), completion_tokens=len(asked.emitted))
        trace = RequestTrace(asked.request_id, asked.model, len(asked.prompt), asked.traceparent)
        return cls(asked, sink, now, now, [*asked.prompt, *asked.emitted], usage, trace)

    @property
    def request_id(self) -> str:
        return self.asked.request_id

    @property
    def is_over(self) -> bool:
        return self.phase is Phase.OVER

    @property
    def deadline_at(self) -> float:
        return self.arrived_at + self.asked.deadline_s

    @property
    def remaining(self) -> int:
        """Tokens still wanted."""
        return self.asked.sampling.max_tokens - self.usage.completion_tokens

    @property
    def attempt_number(self) -> int:
        """Number of the present or last placement."""
        return self.asked.first_attempt + max(0, self.usage.attempts - 1)
