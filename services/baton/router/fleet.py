"""The router's view of its workers: who is connected, what they report, and what was decided since.

An incarnation of a worker is known by its epoch: a newer one replaces the older at once. Which workers are connected to
is decided in links.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Protocol

import structlog

from baton.core.pooling import Task
from baton.router.metrics import WORKERS_CONNECTED
from baton.router.policy_facts import WorkerFacts
from baton.router.ports import Load, Standing, WorkerInfo, WorkerPort

log = structlog.get_logger(__name__)

ROLES = ("prefill", "decode", "unified")
STRIKE_S = 2.0  # price of one fresh failure
STRIKE_HALF_LIFE_S = 10.0
SUSPECT_PENALTY_S = 60.0
_SILENT = Standing()  # of a worker that tells operators nothing
REPORTS_UNTIL_SEEN = 2  # the first report after a decision may have been on its way already


@dataclass(slots=True)
class _Decision:
    """An assignment that the worker's load report may not show yet."""

    extend_tokens: int
    pages: int
    reports_left: int = REPORTS_UNTIL_SEEN


@dataclass(slots=True)
class WorkerState:
    """One connected incarnation of a worker."""

    info: WorkerInfo
    port: WorkerPort
    heard_at: float
    load: Load = field(default_factory=Load)
    standing: Standing = field(default_factory=Standing)
    decisions: dict[int, _Decision] = field(default_factory=dict)
    strikes: float = 0.0
    struck_at: float = 0.0

    def strike(self, now: float) -> None:
        self.strikes = self._strikes(now) + 1
        self.struck_at = now

    def penalty_s(self, now: float, suspect_s: float) -> float:
        silent = now - self.heard_at > suspect_s
        return STRIKE_S * self._strikes(now) + (SUSPECT_PENALTY_S if silent else 0.0)

    def _strikes(self, now: float) -> float:
        return self.strikes * 0.5 ** ((now - self.struck_at) / STRIKE_HALF_LIFE_S)


class FleetListener(Protocol):
    """What the fleet tells the life of requests (lifecycle.py)."""

    def on_worker_connected(self, info: WorkerInfo) -> None: ...

    def on_fleet_changed(self) -> None:
        """A placement may have become possible."""


class Fleet:
    """Connected workers and their loads. One event loop; implements LinkEvents."""

    def __init__(self, clock: Callable[[], float], suspect_s: float) -> None:
        self._clock = clock
        self._suspect_s = suspect_s
        self._states: dict[WorkerPort, WorkerState] = {}
        self._by_id: dict[str, WorkerState] = {}
        self._models: dict[str, str] = {}  # every model ever seen -> revision
        self.listener: FleetListener | None = None

    # --- what the life of requests needs ------------------------------------------------------------------------

    @property
    def workers(self) -> list[WorkerState]:
        """Connected workers, one per worker id: its newest incarnation."""
        return list(self._by_id.values())

    def worker(self, worker_id: str) -> WorkerState | None:
        return self._by_id.get(worker_id)

    @property
    def models(self) -> dict[str, str]:
        """Every model that any worker has served or registered for, with its revision ("" = not connected yet)."""
        return self._models

    def of_model(self, model: str) -> list[WorkerState]:
        return [state for state in self._by_id.values() if state.info.model == model]

    def tasks(self, model: str) -> frozenset[Task]:
        """What connected workers of the model can do."""
        return frozenset(task for state in self.of_model(model) for task in state.info.tasks)

    def facts(self, model: str) -> list[WorkerFacts]:
        """A snapshot for the policy."""
        return [_facts(state, self.penalty_s(state)) for state in self.of_model(model)]

    def penalty_s(self, state: WorkerState) -> float:
        """By how much placement prefers others now."""
        return state.penalty_s(self._clock(), self._suspect_s)

    def silent_s(self, state: WorkerState) -> float:
        """Time since the worker's last report."""
        return self._clock() - state.heard_at

    def note_decision(self, worker_id: str, ref: int, extend_tokens: int, pages: int) -> None:
        """A decision counts as load at once, until the worker's reports show it."""
        self._by_id[worker_id].decisions[ref] = _Decision(extend_tokens, pages)

    def strike(self, worker_id: str) -> None:
        """The worker has failed an attempt: others are preferred for a while."""
        state = self._by_id.get(worker_id)
        if state is not None:
            state.strike(self._clock())

    def expect_model(self, model: str) -> None:
        """A worker of this model is registered, though not connected yet."""
        self._models.setdefault(model, "")

    # --- LinkEvents ---------------------------------------------------------------------------------------------

    def on_description(self, link: WorkerPort, info: WorkerInfo) -> bool:
        known = self._by_id.get(info.worker_id)
        if known is not None and known.port is not link:
            if known.info.epoch >= info.epoch:
                log.info("worker refused: it is connected by another address, or newer", worker=info.worker_id)
                return False
            self._drop(known)
        state = self._states.get(link)
        if state is not None and (state.info.worker_id, state.info.epoch) != (info.worker_id, info.epoch):
            return False  # one connection speaks for one incarnation
        if info.role not in ROLES:
            log.error("worker with an unknown role is ignored", worker=info.worker_id, role=info.role)
            return False
        if state is None:
            state = WorkerState(info, link, self._clock(), Load(free_pages=info.pages))
            self._states[link] = self._by_id[info.worker_id] = state
            log.info("worker connected", worker=info.worker_id, role=info.role, model=info.model, epoch=info.epoch)
            if self.listener:
                self.listener.on_worker_connected(info)
        state.info = info
        self._models[info.model] = info.layout.model_revision
        self._changed()
        return True

    def on_load(self, link: WorkerPort, load: Load, standing: Standing = _SILENT) -> None:
        state = self._states.get(link)
        if state is None:
            return
        state.load, state.standing, state.heard_at = load, standing, self._clock()
        for ref, decision in list(state.decisions.items()):
            decision.reports_left -= 1
            if not decision.reports_left:
                del state.decisions[ref]
        if self.listener:
            self.listener.on_fleet_changed()

    def on_settled(self, link: WorkerPort, ref: int) -> None:
        if state := self._states.get(link):
            state.decisions.pop(ref, None)

    def on_disconnected(self, link: WorkerPort) -> None:
        if state := self._states.get(link):
            self._drop(state)
            self._changed()

    def _drop(self, state: WorkerState) -> None:
        self._states.pop(state.port, None)
        if self._by_id.get(state.info.worker_id) is state:
            del self._by_id[state.info.worker_id]

    def _changed(self) -> None:
        roles = Counter(state.info.role for state in self._by_id.values())
        for role in ROLES:
            WORKERS_CONNECTED.labels(role=role).set(roles[role])
        if self.listener:
            self.listener.on_fleet_changed()


def _facts(state: WorkerState, penalty_s: float) -> WorkerFacts:
    info, load, decisions = state.info, state.load, state.decisions.values()
    return WorkerFacts(
        worker_id=info.worker_id,
        role=info.role,
        model=info.model,
        fingerprint=info.layout.fingerprint,
        kv_model=info.layout.model,
        token_limit=info.token_limit,
        page_size=info.layout.page_size,
        layers=info.layout.layers,
        kv_bytes_per_token=info.layout.layers * info.layout.page_bytes // info.layout.page_size,
        transport=info.agent.transport if info.agent else "",
        max_running=info.max_running,
        **asdict(load),
        pending_requests=len(decisions),
        pending_extend_tokens=sum(decision.extend_tokens for decision in decisions),
        pending_pages=sum(decision.pages for decision in decisions),
        penalty_s=penalty_s,
        layout=info.layout,
        tasks=info.tasks,
    )
