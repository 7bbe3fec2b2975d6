"""A router's domain with toy workers and a clock that tests move: no sockets, no event loop, no sleeping."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from baton.core.errors import BatonError
from baton.core.sampling import SamplingParams
from baton.router.fleet import Fleet
from baton.router.index import PrefixIndex
from baton.router.lifecycle import Lifecycle
from baton.router.placer import Placer
from baton.router.ports import (
    AgentInfo,
    Assignment,
    AttemptListener,
    Fetch,
    Finish,
    Handoff,
    Load,
    Offer,
    Row,
    WorkerInfo,
)
from baton.router.request import Request, Submission, Usage
from baton.router.settings import RouterSettings
from baton.testing.fake_worker import LAYOUT
from baton.testing.toy_engine import ToyEngine, ToyHandoffs, ToyRequest

_FINISH = {"": None, "stop": Finish.STOP, "length": Finish.LENGTH}


@dataclass
class Timer:
    at: float
    callback: Callable[..., object]
    args: tuple[Any, ...]
    is_cancelled: bool = False

    def when(self) -> float:
        return self.at

    def cancel(self) -> None:
        self.is_cancelled = True


class VirtualClock:
    def __init__(self) -> None:
        self.now = 1000.0
        self._order = itertools.count()
        self._timers: list[tuple[float, int, Timer]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[..., object], *args: Any) -> Timer:
        timer = Timer(when, callback, args)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def advance(self, seconds: float) -> None:
        """Move on, firing what becomes due, in order."""
        until = self.now + seconds
        while self._timers and self._timers[0][0] <= until:
            at, _, timer = heapq.heappop(self._timers)
            self.now = max(self.now, at)
            if not timer.is_cancelled:
                timer.callback(*timer.args)
        self.now = until


@dataclass
class Recorder:
    """A caller: what it has heard of one request."""

    tokens: list[int] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    finish: Finish | None = None
    stop_token_id: int = 0
    usage: Usage | None = None
    error: BatonError | None = None

    @property
    def is_over(self) -> bool:
        return self.finish is not None or self.error is not None

    def on_tokens(self, attempt: int, row: Row) -> None:
        assert not self.is_over, "tokens after the end"
        self.tokens += row.token_ids
        self.rows.append(row)
        self.attempts.append(attempt)

    def on_finished(self, attempt: int, finish: Finish, stop_token_id: int, usage: Usage) -> None:
        assert not self.is_over, "two ends"
        self.finish, self.stop_token_id, self.usage = finish, stop_token_id, usage

    def on_error(self, attempt: int, error: BatonError) -> None:
        assert not self.is_over, "two ends"
        self.error = error


class SimWorker:
    """A toy worker whose messages to the router wait until the test delivers them. Implements WorkerPort."""

    def __init__(self, sim: Sim, worker_id: str, role: str, **options: Any) -> None:
        self.sim = sim
        self.worker_id = worker_id
        self.role = role
        self.options = options
        self.epoch = 0
        self.is_up = False
        self.engine = ToyEngine(sim.handoffs)
        self.inbox: list[Callable[[], None]] = []
        self.listeners: dict[int, AttemptListener] = {}
        self.assignments: list[Assignment] = []
        self.cancelled: list[int] = []
        self.stale = 0
        self._ref = 0

    # WorkerPort
    def assign(self, assignment: Assignment, listener: AttemptListener) -> int:
        assert self.is_up, "assigned to a worker that is down"
        self._ref += 1
        self.listeners[self._ref] = listener
        self.assignments.append(assignment)
        names = {Offer: "offer", Fetch: "fetch"}
        self.engine.assign(
            ToyRequest(
                ref=self._ref,
                attempt=assignment.attempt,
                token_ids=list(assignment.token_ids),
                prompt_tokens=assignment.prompt_tokens,
                max_tokens=assignment.sampling.max_tokens,
                stage=names.get(type(assignment.stage), "run_all"),
                stop_token_ids=frozenset(assignment.sampling.stop_token_ids),
            )
        )
        return self._ref

    def cancel(self, ref: int) -> None:
        if self.listeners.pop(ref, None) is not None:
            self.cancelled.append(ref)
            self.engine.cancel(ref)
            self.sim.fleet.on_settled(self, ref)

    def forget(self, ref: int) -> None:
        self.listeners.pop(ref, None)

    # what tests do
    @property
    def info(self) -> WorkerInfo:
        return WorkerInfo(
            worker_id=self.worker_id,
            epoch=self.epoch,
            role=self.role,
            model=self.options.get("model", "toy"),
            layout=self.options.get("layout", LAYOUT),
            pages=1024,
            max_context_tokens=self.options.get("max_context_tokens", 4096),
            max_running=self.options.get("max_running", 64),
            agent=AgentInfo(self.worker_id, self.epoch, "toy") if self.options.get("agent", True) else None,
            address=self.worker_id,
        )

    def start(self) -> None:
        """Come up, as a new incarnation."""
        self.epoch += 1
        self.engine = ToyEngine(self.sim.handoffs, max_running=self.options.get("max_running", 64))
        self.inbox.clear()
        self.is_up = True
        assert self.sim.fleet.on_description(self, self.info)
        self.report()

    def report(self) -> None:
        self.sim.fleet.on_load(self, self._load())

    def kill(self) -> None:
        """Die: the stream breaks, undelivered messages are lost."""
        self.is_up = False
        self.engine.close()
        self.inbox.clear()
        listeners, self.listeners = self.listeners, {}
        self.sim.fleet.on_disconnected(self)
        for listener in listeners.values():
            listener.on_lost("killed")

    def step(self) -> None:
        """One engine step; its messages are on their way."""
        output = self.engine.step()
        for request in output.admitted:
            self._later(request.ref, lambda listener: listener.on_admitted(0, 0.0))
        for request in output.handoffs:
            self._later(request.ref, lambda listener: listener.on_handoff(Handoff(1024, 0.002, 0.001)))
        for row in output.rows:
            message = Row(row.token_ids, _FINISH[row.finish])
            self._later(row.request.ref, lambda listener, message=message: listener.on_row(message), row.finish != "")
        for request, error in output.failed:
            self._later(request.ref, lambda listener, error=error: listener.on_failed(error), True)
        load = self._load()
        self.inbox.append(lambda: self.sim.fleet.on_load(self, load))

    def deliver(self, count: int = 1 << 30) -> None:
        """The router hears the next messages."""
        for _ in range(min(count, len(self.inbox))):
            self.inbox.pop(0)()
            if not self.inbox:
                return

    def _later(self, ref: int, tell: Callable[[AttemptListener], None], is_last: bool = False) -> None:
        def message() -> None:
            listener = self.listeners.get(ref)
            if listener is None:
                self.stale += 1
                return
            self.sim.fleet.on_settled(self, ref)
            if is_last:
                del self.listeners[ref]
            tell(listener)

        self.inbox.append(message)

    def _load(self) -> Load:
        running = self.engine.running
        return Load(
            running=running,
            waiting=len(self.engine.requests) - running,
            free_pages=1022,
            waiting_extend_tokens=self.engine.waiting_extend_tokens,
            extend_tokens_per_s=1000.0,
            decode_step_s=0.01,
            handoff_bytes_per_s=1e9,
        )


class Sim:
    """Router and workers. Worker options: model, max_context_tokens, max_running, agent, layout."""

    def __init__(self, prefill: int = 1, decode: int = 1, unified: int = 0, **settings: Any) -> None:
        self.clock = VirtualClock()
        self.settings = RouterSettings(**settings)
        self.handoffs = ToyHandoffs()
        self.fleet = Fleet(self.clock.time, self.settings.suspect_s)
        self.index = PrefixIndex(None)
        self.is_settled = True
        placer = Placer(self.settings, self.fleet, self.index, self.clock)
        self.lifecycle = Lifecycle(self.settings, self.fleet, placer, self.clock, lambda: self.is_settled)
        self.workers: dict[str, SimWorker] = {}
        self._ids = itertools.count()
        for role, count in (("prefill", prefill), ("decode", decode), ("unified", unified)):
            for number in range(count):
                self.add(f"{role[0]}{number}", role)

    def __getitem__(self, worker_id: str) -> SimWorker:
        return self.workers[worker_id]

    def add(self, worker_id: str, role: str, **options: Any) -> SimWorker:
        worker = self.workers[worker_id] = SimWorker(self, worker_id, role, **options)
        worker.start()
        return worker

    def submit(self, prompt: list[int] | None = None, max_tokens: int = 5, **options: Any) -> tuple[Request, Recorder]:
        recorder = Recorder()
        sampling = options.pop("sampling", SamplingParams(max_tokens=max_tokens, seed=1))
        asked = Submission(
            request_id=options.pop("request_id", f"r{next(self._ids)}"),
            model=options.pop("model", "toy"),
            prompt=[1, 2, 3] if prompt is None else prompt,
            sampling=sampling,
            deadline_s=options.pop("deadline_s", 600.0),
            **options,
        )
        return self.lifecycle.submit(asked, recorder), recorder

    def run(self, until: Callable[[], bool] = lambda: False, steps: int = 500) -> None:
        """Let all workers work and the router hear all, 10 ms a round, until nothing is in flight or `until`."""
        for _ in range(steps):
            if until() or not self.lifecycle.in_flight:
                return
            self.clock.advance(0.01)
            for worker in self.workers.values():
                if worker.is_up:
                    worker.step()
                    worker.deliver()

    def assert_quiet(self) -> None:
        """Nothing is left anywhere."""
        assert self.lifecycle.in_flight == 0 and self.lifecycle.queued == 0
        for worker in self.workers.values():
            assert worker.engine.requests == {}, worker.worker_id
            assert worker.listeners == {}, worker.worker_id
