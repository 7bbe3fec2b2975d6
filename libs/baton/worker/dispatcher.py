"""Router messages -> engine, step outputs -> routers, desk and prefix index. All on the asyncio loop.

Nothing here computes or moves pages: the dispatcher knows who waits for an attempt and passes things on.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from baton.core import hashing
from baton.core.attempt import Attempt
from baton.core.errors import BatonError, DeadlineExceeded, InvalidRequest, Unavailable
from baton.core.layout import KvLayout
from baton.core.tiers import Tier
from baton.engine.api import EngineLoad, EngineRequest, Failed, HandoffListener, Stage, StepEngine, StepOutput
from baton.engine.grammar.compiler import GrammarCompiler
from baton.kv.local import AgentMessage, Welcome, WorkerMessage
from baton.rpc.convert import attempt_from_pb, attempt_to_pb, error_to_pb, pooling_from_pb, sampling_from_pb
from baton.rpc.v1 import worker_pb2 as pb
from baton.worker import frames, metrics
from baton.worker.desk import HandoffDesk, MakeDesk
from baton.worker.grammars import GrammarGate
from baton.worker.loans import Loans
from baton.worker.loop import Command, EngineLoop
from baton.worker.pulls import Pulls
from baton.worker.sessions import AttemptBook, LiveAttempt, RouterSession
from baton.worker.tiering import Tiering
from baton.worker.totals import Totals
from baton.worker.traces import AttemptTraces

log = structlog.get_logger(__name__)

STAGES = {"run_all": Stage.RUN_ALL, "offer": Stage.OFFER, "fetch": Stage.FETCH}


MakeEngine = Callable[[HandoffListener | None], StepEngine]


class BlockSink(Protocol):
    """Where block events go (baton.prefix.publisher); must not block."""

    def record(
        self, stored: Iterable[bytes], removed: Iterable[bytes], tiered: Iterable[tuple[bytes, Tier]]
    ) -> None: ...


class AgentSender(Protocol):
    """The link to the agent (baton.kv.link)."""

    def send(self, message: WorkerMessage) -> bool: ...


class Dispatcher:
    """One worker's switchboard. `description` is sent to routers first, and again when the agent comes or goes."""

    def __init__(
        self,
        make_engine: MakeEngine,
        layout: KvLayout,
        description: pb.WorkerDescription,
        make_desk: MakeDesk,
        *,
        agent: AgentSender | None,
        blocks: BlockSink | None,
        on_crash: Callable[[BaseException], None],
        pull_timeout_s: float = 2.0,
        grammars: GrammarCompiler | None = None,
    ) -> None:
        self.description = description
        self._layout = layout
        self._agent = agent
        self._blocks = blocks
        self._book = AttemptBook()
        self._sessions: set[RouterSession] = set()
        self._desk: HandoffDesk = make_desk(self)
        self._pulls = Pulls(self, layout, description.worker_id, pull_timeout_s)
        self._loans = Loans(self, layout)
        self._tiering = Tiering(self, description.pages)
        self._gate = GrammarGate(grammars, self._submit, self._refuse)
        engine = make_engine(self._desk.listener)
        self._engine_loop = EngineLoop(engine, self._on_step, on_crash)
        self._step = 0
        self._told: set[RouterSession] = set()  # got a frame, and the load with it, since the last beat
        self._totals = Totals()
        self._traces = AttemptTraces(description.worker_id)
        self._load = frames.load_message(engine.load(), 0.0, self._pulls.meter, self._pulls.prices, self._totals)
        self._handoff_bytes_per_s = 0.0
        self._asyncio_loop = asyncio.get_running_loop()

    # --- life -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        self._engine_loop.start()

    async def stop(self, drain_s: float) -> None:
        """Let running attempts end for `drain_s` seconds, then end all sessions and the engine's thread."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self._book.empty.wait()
        for session in list(self._sessions):
            session.close()
        self._gate.close()
        await self._engine_loop.stop()

    async def beat(self, period_s: float = 1.0) -> None:
        """Tell routers that got no frame for a period the load. Runs until cancelled."""
        while True:
            await asyncio.sleep(period_s)
            for session in self._sessions - self._told:
                session.put(pb.WorkerEvent(step=pb.StepFrame(step=self._step, load=self._load)))
            self._told.clear()

    # --- routers --------------------------------------------------------------------------------------------

    def open_session(self, router_id: str) -> RouterSession:
        session = RouterSession(router_id)
        self._sessions.add(session)
        metrics.routers.set(len(self._sessions))
        session.put(pb.WorkerEvent(description=self.description))
        session.put(pb.WorkerEvent(step=pb.StepFrame(step=self._step, load=self._load)))
        return session

    def close_session(self, session: RouterSession) -> None:
        """The router's stream ended: cancel all that came by it."""
        self._sessions.discard(session)
        metrics.routers.set(len(self._sessions))
        for attempt in self._book.drop_session(session):
            self._stop_computing(attempt)

    def assign(self, session: RouterSession, message: pb.Assign) -> None:
        """Take an attempt; whatever is wrong with it is reported as its failure, never raised."""
        attempt = attempt_from_pb(message.attempt)
        live = LiveAttempt(attempt, session, message.ref, self._asyncio_loop.time())
        try:
            request = self._request(attempt, message)
            self._book.add(live)
            self._traces.assigned(attempt, request.stage, message.traceparent)
        except BatonError as error:
            self._send_failure(live, error)
            return
        try:
            self._desk.assigned(request, message)
        except BatonError as error:
            self.fail(attempt, error)
            return
        if message.deadline_ms:
            live.timer = self._asyncio_loop.call_later(message.deadline_ms / 1000, self._deadline_passed, attempt)
        log.debug("assigned", request_id=attempt.request_id, attempt=attempt.n, stage=request.stage.value)
        self._gate.pass_on(self._pulls.assigned(request, message))

    def _submit(self, request: EngineRequest) -> None:
        if self.is_live(request.attempt):
            self._engine_loop.submit(request)

    def _refuse(self, request: EngineRequest, error: BatonError) -> None:
        """The engine has never seen the request: the desk hears what the engine would have told it."""
        if self.is_live(request.attempt):
            self._desk.on_step(StepOutput(failed=[Failed(request.attempt, error)]))
            self._pulls.cancelled(request.attempt)
            self.fail(request.attempt, error)

    def cancel(self, message: pb.Cancel) -> None:
        attempt = attempt_from_pb(message.attempt)
        if self._book.remove(attempt):
            self._stop_computing(attempt)

    def _request(self, attempt: Attempt, message: pb.Assign) -> EngineRequest:
        stage = STAGES.get(message.WhichOneof("stage") or "")
        if stage is None or stage not in self._desk.stages:
            raise InvalidRequest(f"a {self.description.role} worker does not take stage {message.WhichOneof('stage')}")
        if message.lora:
            raise InvalidRequest(f"this worker has no LoRA adapter named {message.lora!r}", param="lora")
        return EngineRequest(
            attempt=attempt,
            token_ids=list(message.token_ids),
            prompt_tokens=message.prompt_tokens,
            sampling=sampling_from_pb(message.sampling),
            root_hash=hashing.root_hash(
                self._layout.model_revision, self._layout.fingerprint, cache_salt=message.cache_salt
            ),
            stage=stage,
            priority=message.priority,
            pooling=pooling_from_pb(message.pooling) if message.HasField("pooling") else None,
        )

    def _deadline_passed(self, attempt: Attempt) -> None:
        self.fail(attempt, DeadlineExceeded("the attempt's deadline passed on the worker"))
        self._stop_computing(attempt)

    def _stop_computing(self, attempt: Attempt) -> None:
        self._traces.over(attempt)

        def command(engine: StepEngine) -> None:
            pages_free = engine.cancel(attempt)
            self._asyncio_loop.call_soon_threadsafe(self._stopped, attempt, pages_free)

        self.post(command)

    def _stopped(self, attempt: Attempt, pages_free: bool) -> None:
        self._pulls.cancelled(attempt)
        self._desk.cancelled(attempt, pages_free)

    # --- what the desk may do (desk.Counter) ------------------------------------------------------------------

    def post(self, command: Command) -> None:
        self._engine_loop.post(command)

    def send(self, message: WorkerMessage) -> bool:
        return self._agent is not None and self._agent.send(message)

    def traceparent(self, attempt: Attempt) -> str:
        return self._traces.traceparent(attempt)

    def is_live(self, attempt: Attempt) -> bool:
        return self._book.get(attempt) is not None

    def done(self, attempt: Attempt) -> None:
        self._book.remove(attempt)

    def fail(self, attempt: Attempt, error: BatonError) -> None:
        if live := self._book.remove(attempt):
            self._send_failure(live, error)

    def report(self, attempt: Attempt, report: pb.HandoffReport) -> None:
        metrics.handoff_bytes.inc(report.bytes)
        metrics.handoff_s.observe(report.total_s)
        metrics.handoff_exposed_s.observe(report.exposed_s)
        self._totals.add_handoff(report)
        self._traces.handed_over(attempt, report)
        if report.bytes and report.total_s > 0:
            rate = report.bytes / report.total_s
            old = self._handoff_bytes_per_s
            self._handoff_bytes_per_s = rate if not old else 0.8 * old + 0.2 * rate
        if live := self._book.get(attempt):
            live.session.put(_attempt_event(live, handoff=report))

    # --- engine and agent -------------------------------------------------------------------------------------

    def _on_step(self, output: StepOutput, load: EngineLoad) -> None:
        self._step += 1
        self._totals.add_step(output)
        self._traces.on_step(output)
        meter, prices = self._pulls.meter, self._pulls.prices
        self._load = frames.load_message(load, self._handoff_bytes_per_s, meter, prices, self._totals)
        metrics.observe_step(output, load)
        for admitted in output.admitted:
            if live := self._book.get(admitted.attempt):
                message = pb.Admitted(
                    cached_tokens=admitted.cached_tokens,
                    queued_s=admitted.queued_s,
                    pulled_tokens=admitted.pulled_tokens,
                )
                live.session.put(_attempt_event(live, admitted=message))
        self._send_frames(output)
        self._pulls.on_step(output, load.extend_tokens_per_s)
        self._tiering.on_step(output)
        self._desk.on_step(output)
        for row in output.rows:
            if row.finish is not None:
                self._book.remove(row.attempt)
        for failed in output.failed:
            self.fail(failed.attempt, failed.error)
        if self._blocks is not None and (output.stored_blocks or output.removed_blocks or output.tiered_blocks):
            self._blocks.record(output.stored_blocks, output.removed_blocks, output.tiered_blocks)

    def _send_frames(self, output: StepOutput) -> None:
        rows = {row.attempt: row for row in output.rows}
        groups = self._book.group(rows)
        for session, lives in groups.items():
            frame = frames.step_frame(self._step, [(live.ref, rows[live.attempt]) for live in lives], self._load)
            session.put(pb.WorkerEvent(step=frame))
            self._told.add(session)

    def on_agent_message(self, message: AgentMessage) -> None:
        for part in (self._pulls, self._loans, self._tiering):
            if part.on_agent_message(message):
                return
        self._desk.on_agent_message(message)

    def on_agent_connection(self, welcome: Welcome | None) -> None:
        """The agent greeted us, or its link broke (None)."""
        metrics.agent_connected.set(welcome is not None)
        if welcome is None:
            self.description.ClearField("agent")
            self._pulls.on_agent_lost()
            self._tiering.on_agent_lost()
            self._desk.on_agent_lost()
        else:
            self.description.agent.CopyFrom(
                pb.AgentDescription(
                    address=welcome.address,
                    epoch=welcome.agent_epoch,
                    transport=welcome.transport,
                    tier_blocks=welcome.tier_blocks,
                    version=welcome.version,
                )
            )
            self._pulls.on_agent_connected()
            self._loans.on_agent_connected()
            self._tiering.on_agent_connected(welcome.tier_blocks)
            self._desk.on_agent_connected()
        for session in self._sessions:
            session.put(pb.WorkerEvent(description=self.description))

    def _send_failure(self, live: LiveAttempt, error: BatonError) -> None:
        metrics.failures.labels(code=error.code).inc()
        self._traces.over(live.attempt, error)
        level = log.info if isinstance(error, (InvalidRequest, Unavailable, DeadlineExceeded)) else log.warning
        level("attempt failed", request_id=live.attempt.request_id, attempt=live.attempt.n, error=error.message)
        live.session.put(_attempt_event(live, failed=error_to_pb(error)))


def _attempt_event(live: LiveAttempt, **event: object) -> pb.WorkerEvent:
    message = pb.AttemptEvent(ref=live.ref, attempt=attempt_to_pb(live.attempt), **event)  # type: ignore[arg-type]
    return pb.WorkerEvent(attempt=message)
