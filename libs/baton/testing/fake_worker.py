"""A worker without a model: the Worker gRPC service over a toy engine (toy_engine.py), with faults to order.

    handoffs = ToyHandoffs()
    prefill = FakeWorker("p0", "prefill", handoffs)
    decode = FakeWorker("d0", "decode", handoffs)
    await prefill.start()
    await decode.start()
    ... RouterSettings(listen="127.0.0.1:0", workers=[prefill.address, decode.address]) ...
    assert tokens == toy_tokens(prompt, 20)

Answers are those of `toy_tokens`. Faults: `kill()`, `engine.stalled`, `engine.fail_handoffs`, `engine.fail_next`,
`step_s`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import grpc

from baton.core.attempt import new_epoch
from baton.core.layout import KvLayout
from baton.rpc.convert import attempt_from_pb, attempt_to_pb, error_to_pb, layout_to_pb
from baton.rpc.server import RpcServer
from baton.rpc.tls import Tls
from baton.rpc.v1 import common_pb2, worker_pb2, worker_pb2_grpc
from baton.runtime.lifecycle import cancel_and_wait
from baton.testing.toy_engine import VOCABULARY, ToyEngine, ToyHandoffs, ToyRequest, ToyRow, ToyStep, toy_logprob

LAYOUT = KvLayout("toy-revision", "float32", layers=2, page_size=16, kv_heads=2, head_dim=8)

_FINISH = {
    "": common_pb2.FINISH_REASON_UNSPECIFIED,
    "stop": common_pb2.FINISH_REASON_STOP,
    "length": common_pb2.FINISH_REASON_LENGTH,
}


class FakeWorker(worker_pb2_grpc.WorkerServicer):
    """One fake worker. It can be started again after `kill` or `stop`: on the same address, with a new epoch.

    `handoffs` is shared by the workers that hand over to each other; without it the worker has no agent.
    `step_s`: duration of an engine step.
    """

    def __init__(
        self,
        worker_id: str,
        role: str,
        handoffs: ToyHandoffs | None = None,
        *,
        model: str = "toy",
        layout: KvLayout = LAYOUT,
        pages: int = 1024,
        max_context_tokens: int = 4096,
        max_running: int = 64,
        chunk_tokens: int = 1 << 30,
        vocabulary: int = VOCABULARY,
        eos_token_id: int | None = None,
        step_s: float = 0.0,
        tls: Tls | None = None,
    ) -> None:
        self.worker_id = worker_id
        self.step_s = step_s
        self._tls = tls
        self.address = "127.0.0.1:0"
        self.description = worker_pb2.WorkerDescription(
            worker_id=worker_id, role=role, model=model, layout=layout_to_pb(layout), pages=pages,
            max_context_tokens=max_context_tokens, max_batch_tokens=2048, max_running=max_running,
        )  # fmt: skip
        if handoffs is not None:
            self.description.agent.CopyFrom(worker_pb2.AgentDescription(address=worker_id, epoch=1, transport="toy"))
        self._handoffs = handoffs or ToyHandoffs()
        self._handoffs.listeners.append(self._woken)
        self._engine_options = {
            "vocabulary": vocabulary,
            "eos_token_id": eos_token_id,
            "chunk_tokens": chunk_tokens,
            "max_running": max_running,
        }
        self.engine = self._new_engine()
        self._wake = asyncio.Event()
        self._sessions: list[_Session] = []
        self._last_key = 0
        self._step = 0
        self._server: RpcServer | None = None
        self._stepping: asyncio.Task[None] | None = None

    @property
    def epoch(self) -> int:
        return self.description.epoch

    async def start(self, address: str | None = None) -> None:
        """Listen on `address`, by default the one of the last start or an ephemeral port."""
        wanted = address or self.address
        self.engine = self._new_engine()
        self._server = RpcServer(
            wanted,
            [("baton.rpc.v1.Worker", lambda server: worker_pb2_grpc.add_WorkerServicer_to_server(self, server))],
            self._tls,
        )
        self.address = wanted if wanted.startswith("unix:") else f"127.0.0.1:{self._server.port}"
        self.description.address = self.address
        self.description.epoch = new_epoch()
        await self._server.start()
        await self._server.set_ready(True)
        self._stepping = asyncio.create_task(self._run_steps())

    async def kill(self) -> None:
        """End like a crash: streams break, nothing is said."""
        stepping, self._stepping = self._stepping, None
        await cancel_and_wait(stepping)
        self.engine.close()
        for session in self._sessions:
            session.events.put_nowait(None)
        if self._server is not None:
            await self._server.stop(0.0)
            self._server = None

    def resume(self) -> None:
        """After a fault of the engine was taken back: go on."""
        self._wake.set()

    async def Describe(
        self, request: worker_pb2.DescribeWorkerRequest, context: grpc.aio.ServicerContext
    ) -> worker_pb2.WorkerDescription:
        return self.description

    async def Work(
        self, requests: AsyncIterator[worker_pb2.WorkerRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[worker_pb2.WorkerEvent]:
        session = _Session()
        self._sessions.append(session)
        reader = asyncio.create_task(self._read(requests, session))
        try:
            yield worker_pb2.WorkerEvent(description=self.description)
            yield worker_pb2.WorkerEvent(step=worker_pb2.StepFrame(step=self._step, load=self._load()))
            while (event := await session.events.get()) is not None:
                yield event
        finally:
            reader.cancel()
            self._sessions.remove(session)
            for key in list(session.keys.values()):
                self.engine.cancel(key)
            await cancel_and_wait(reader)

    # --- inside -------------------------------------------------------------------------------------------------

    def _new_engine(self) -> ToyEngine:
        return ToyEngine(self._handoffs, **self._engine_options)  # type: ignore[arg-type]

    def _woken(self) -> None:
        self._wake.set()

    async def _read(self, requests: AsyncIterator[worker_pb2.WorkerRequest], session: _Session) -> None:
        async for request in requests:
            match request.WhichOneof("message"):
                case "assign":
                    self._assign(request.assign, session)
                case "cancel":
                    key = session.keys.pop(request.cancel.ref, None)
                    if key is not None:
                        self.engine.cancel(key)
        session.events.put_nowait(None)

    def _assign(self, message: worker_pb2.Assign, session: _Session) -> None:
        self._last_key += 1
        session.keys[message.ref] = self._last_key
        session.refs[self._last_key] = message.ref
        self.engine.assign(
            ToyRequest(
                ref=self._last_key,
                attempt=attempt_from_pb(message.attempt),
                token_ids=list(message.token_ids),
                prompt_tokens=message.prompt_tokens,
                max_tokens=message.sampling.max_tokens,
                stage=message.WhichOneof("stage") or "",
                stop_token_ids=frozenset(message.sampling.stop_token_ids),
                wants_logprobs=message.sampling.HasField("top_logprobs"),
                wants_prompt_logprobs=message.sampling.HasField("prompt_logprobs"),
            )
        )
        self._wake.set()

    async def _run_steps(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self.engine.has_work:
                await asyncio.sleep(self.step_s)
                self._send(self.engine.step())
            for session in self._sessions:
                session.put(step=worker_pb2.StepFrame(step=self._step, load=self._load()))

    def _send(self, output: ToyStep) -> None:
        """One frame per router, as a real worker packs it; events of attempts before it."""
        self._step += 1
        for session in self._sessions:
            for request in output.admitted:
                session.event(request, admitted=worker_pb2.Admitted(cached_tokens=0))
            for request in output.handoffs:
                report = worker_pb2.HandoffReport(bytes=1024, pages=1, total_s=0.002, exposed_s=0.001)
                session.event(request, handoff=report)
            rows = [row for row in output.rows if row.request.ref in session.refs]
            if rows:
                session.put(step=self._frame(rows, session))
            for request, error in output.failed:
                session.event(request, failed=error_to_pb(error))

    def _frame(self, rows: Sequence[ToyRow], session: _Session) -> worker_pb2.StepFrame:
        frame = worker_pb2.StepFrame(step=self._step, load=self._load())
        for row in rows:
            ref = session.refs[row.request.ref]
            frame.refs.append(ref)
            frame.counts.append(len(row.token_ids))
            frame.token_ids.extend(row.token_ids)
            frame.finish.append(_FINISH[row.finish])
            wants_prompt = row.is_first and row.request.wants_prompt_logprobs
            if row.request.wants_logprobs or wants_prompt:
                prompt = row.request.token_ids[1 : row.request.prompt_tokens] if wants_prompt else []
                entry = frame.logprobs.add(ref=ref)
                entry.tokens.extend(_logprobs(row.token_ids if row.request.wants_logprobs else []))
                entry.prompt.extend(_logprobs(prompt))
        return frame

    def _load(self) -> worker_pb2.Load:
        running = self.engine.running
        return worker_pb2.Load(
            running=running,
            waiting=len(self.engine.requests) - running,
            free_pages=self.description.pages - 2,
            waiting_extend_tokens=self.engine.waiting_extend_tokens,
            extend_tokens_per_s=100_000.0,
            decode_step_s=0.001,
            handoff_bytes_per_s=1e9,
        )


class _Session:
    """One router's stream: events up, and which attempts came by it (router's ref <-> engine's key)."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[worker_pb2.WorkerEvent | None] = asyncio.Queue()
        self.keys: dict[int, int] = {}
        self.refs: dict[int, int] = {}

    def put(self, *, step: worker_pb2.StepFrame) -> None:
        self.events.put_nowait(worker_pb2.WorkerEvent(step=step))

    def event(
        self,
        request: ToyRequest,
        *,
        admitted: worker_pb2.Admitted | None = None,
        handoff: worker_pb2.HandoffReport | None = None,
        failed: common_pb2.Error | None = None,
    ) -> None:
        ref = self.refs.get(request.ref)
        if ref is not None:
            message = worker_pb2.AttemptEvent(
                ref=ref, attempt=attempt_to_pb(request.attempt), admitted=admitted, failed=failed, handoff=handoff
            )
            self.events.put_nowait(worker_pb2.WorkerEvent(attempt=message))


def _logprobs(token_ids: Sequence[int]) -> list[common_pb2.TokenLogprobs]:
    return [
        common_pb2.TokenLogprobs(
            token_id=token,
            logprob=toy_logprob(token),
            top=[common_pb2.TopLogprob(token_id=token, logprob=toy_logprob(token))],
        )
        for token in token_ids
    ]
