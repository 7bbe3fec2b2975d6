"""One multiplexed `Work` stream to one worker: assignments and cancellations down, packed frames up.

Connects, and connects again with back-off, until it is stopped. It knows attempts only by their refs on the stream.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import structlog

from baton.core.attempt import Attempt
from baton.core.errors import ConfigError, InternalError
from baton.router import convert
from baton.router.metrics import STALE_FRAMES
from baton.router.ports import Assignment, AttemptListener, Handoff, Load, Standing, WorkerInfo, WorkerPort
from baton.rpc.channel import open_channel
from baton.rpc.convert import attempt_to_pb, error_from_pb
from baton.rpc.tls import Tls
from baton.rpc.tls_probe import tls_problem
from baton.rpc.v1 import worker_pb2, worker_pb2_grpc

log = structlog.get_logger(__name__)

_BACKOFF_S = (0.05, 1.0)
_REFUSED_S = 5.0
_HELLO_S = 10.0
_SUSPICIOUS_FAILURES = 4  # in a row
_EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # missing in the stubs


class LinkEvents(Protocol):
    """What a link tells its owner (fleet.py)."""

    def on_description(self, link: WorkerPort, info: WorkerInfo) -> bool:
        """First on every connection, and whenever it changes. False: this worker is not wanted; drop the connection."""

    def on_load(self, link: WorkerPort, load: Load, standing: Standing) -> None: ...

    def on_settled(self, link: WorkerPort, ref: int) -> None:
        """The worker has taken up the attempt, or is done with it: its load reports show it from now on."""

    def on_disconnected(self, link: WorkerPort) -> None:
        """Told before the listeners of its attempts."""


@dataclass(slots=True)
class _Entry:
    attempt: Attempt
    listener: AttemptListener


class WorkerLink:
    """Implements WorkerPort. One event loop.

    `is_wanted(address)` is asked before every new connection; when it says no, `run` ends.
    """

    def __init__(
        self,
        address: str,
        router_id: str,
        events: LinkEvents,
        is_wanted: Callable[[str], bool] = lambda _: True,
        tls: Tls | None = None,
    ) -> None:
        self.address = address
        self.was_described = False
        self._router_id = router_id
        self._events = events
        self._is_wanted = is_wanted
        self._tls = tls
        self._entries: dict[int, _Entry] = {}
        self._outgoing: asyncio.Queue[worker_pb2.WorkerRequest | None] = asyncio.Queue()
        self._last_ref = 0
        self._connected = False
        self._refused = False

    @property
    def connected(self) -> bool:
        """Whether the worker has described itself on the present stream."""
        return self._connected

    # --- WorkerPort -------------------------------------------------------------------------------------------

    def assign(self, assignment: Assignment, listener: AttemptListener) -> int:
        self._last_ref += 1
        ref = self._last_ref
        self._entries[ref] = _Entry(assignment.attempt, listener)
        self._outgoing.put_nowait(convert.assign_message(ref, assignment))
        return ref

    def cancel(self, ref: int) -> None:
        entry = self._entries.pop(ref, None)
        if entry is not None:
            message = worker_pb2.Cancel(ref=ref, attempt=attempt_to_pb(entry.attempt))
            self._outgoing.put_nowait(worker_pb2.WorkerRequest(cancel=message))
            self._events.on_settled(self, ref)

    def forget(self, ref: int) -> None:
        if self._entries.pop(ref, None) is not None:
            self._events.on_settled(self, ref)

    # --- the stream -------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep connected until cancelled or no longer wanted."""
        failures = 0
        while self._is_wanted(self.address):
            failures = 0 if await self._connect() else failures + 1
            if failures == _SUSPICIOUS_FAILURES:
                await self._look_at_tls()
            delay_s = min(_BACKOFF_S[0] * 2**failures, _BACKOFF_S[1])
            await asyncio.sleep((_REFUSED_S if self._refused else delay_s) * random.uniform(0.5, 1.0))

    async def _connect(self) -> bool:
        """One connection, by a channel of its own: TLS files may have changed since the last one."""
        try:
            channel = open_channel(self.address, self._tls)
        except ConfigError as error:
            log.error("worker not reachable", address=self.address, reason=error.message)
            return False
        async with channel:
            return await self._connection(worker_pb2_grpc.WorkerStub(channel))

    async def _look_at_tls(self) -> None:
        if problem := await tls_problem(self.address, self._tls):
            log.warning("worker not reachable", address=self.address, reason=problem)

    async def _connection(self, stub: worker_pb2_grpc.WorkerStub) -> bool:
        """One connection, from its first event to its end. Returns whether the worker was taken on."""
        self._outgoing = asyncio.Queue()
        self._refused = described = False
        call = stub.Work(self._requests(self._outgoing))
        reason = "the worker ended the stream"
        try:
            async with asyncio.timeout(_HELLO_S):
                event = await call.read()
            while event is not _EOF:
                if not self._on_event(event):
                    self._refused, reason = True, "this incarnation of the worker is not wanted"
                    break
                self.was_described = described = True
                event = await call.read()
        except grpc.aio.AioRpcError as error:
            reason = f"{error.code().name.lower()}: {error.details()}"
        except TimeoutError:
            reason = f"no description within {_HELLO_S:g} s"
        except ValueError as error:
            reason = f"a message that cannot be understood: {error}"
            log.error("worker breaks the protocol", address=self.address, reason=reason)
        except Exception as error:  # a defect here must not cost the router this worker for good
            reason = f"{type(error).__name__}: {error}"
            log.exception("worker connection given up", address=self.address)
        finally:
            call.cancel()
            self._outgoing.put_nowait(None)
            self._broken(reason)
        return described

    async def _requests(
        self, outgoing: asyncio.Queue[worker_pb2.WorkerRequest | None]
    ) -> AsyncIterator[worker_pb2.WorkerRequest]:
        """What goes down the stream, until None: gRPC leaves an iterator alone when the other side ends the call."""
        yield worker_pb2.WorkerRequest(hello=worker_pb2.RouterHello(router_id=self._router_id))
        while (request := await outgoing.get()) is not None:
            yield request

    def _broken(self, reason: str) -> None:
        if self._connected:
            log.warning("worker connection lost", address=self.address, reason=reason, attempts=len(self._entries))
        else:
            log.debug("worker not reachable", address=self.address, reason=reason)
        self._connected = False
        entries, self._entries = self._entries, {}
        self._events.on_disconnected(self)
        for entry in entries.values():
            try:
                entry.listener.on_lost(reason)
            except Exception:  # the others are to hear of it too
                log.exception("request handling failed", request_id=entry.attempt.request_id, attempt=entry.attempt.n)

    # --- events -----------------------------------------------------------------------------------------------

    def _on_event(self, event: worker_pb2.WorkerEvent) -> bool:
        match event.WhichOneof("message"):
            case "description":
                self._connected = self._events.on_description(self, convert.worker_info(event.description))
                return self._connected
            case "step":
                self._on_frame(event.step)
            case "attempt":
                self._on_attempt_event(event.attempt)
        return True

    def _on_frame(self, frame: worker_pb2.StepFrame) -> None:
        if frame.HasField("load"):
            self._events.on_load(self, convert.load(frame.load), convert.standing(frame.load))
        for ref, row in convert.rows(frame):
            entry = self._entries.get(ref)
            if entry is None:
                STALE_FRAMES.inc()
                continue
            if row.finish is not None:
                del self._entries[ref]
                self._events.on_settled(self, ref)
            try:
                entry.listener.on_row(row)
            except Exception as error:  # a defect in one request must not end the others' stream
                self._defect(ref, entry, error)

    def _on_attempt_event(self, event: worker_pb2.AttemptEvent) -> None:
        entry = self._entries.get(event.ref)
        if entry is None:
            STALE_FRAMES.inc()
            return
        self._events.on_settled(self, event.ref)
        try:
            match event.WhichOneof("event"):
                case "admitted":
                    entry.listener.on_admitted(event.admitted.cached_tokens, event.admitted.queued_s)
                case "handoff":
                    report = event.handoff
                    entry.listener.on_handoff(Handoff(report.bytes, report.total_s, report.exposed_s))
                case "failed":
                    del self._entries[event.ref]
                    entry.listener.on_failed(error_from_pb(event.failed))
        except Exception as error:
            self._defect(event.ref, entry, error)

    def _defect(self, ref: int, entry: _Entry, error: Exception) -> None:
        log.exception("request handling failed", request_id=entry.attempt.request_id, attempt=entry.attempt.n)
        self.cancel(ref)
        entry.listener.on_failed(InternalError(f"{type(error).__name__}: {error}"))
