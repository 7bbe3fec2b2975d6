"""Asks agents when what happened in a handoff: plain data, no generated types. For people and tools.

Times are seconds since 1970 by the clock of the agent's host; 0: has not happened. What the fields mean stands in
kv.proto, whose names they have.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from baton.core.attempt import Attempt
from baton.core.errors import ConfigError
from baton.rpc.channel import open_channel
from baton.rpc.convert import attempt_from_pb
from baton.rpc.status import from_rpc_error
from baton.rpc.v1 import kv_pb2, kv_pb2_grpc, worker_pb2, worker_pb2_grpc

_ASK_S = 5.0


@dataclass(frozen=True, slots=True)
class ComputedRange:
    layer_start: int
    layer_end: int
    page_start: int
    pages: int
    computed_at: float


@dataclass(frozen=True, slots=True)
class ReadRange:
    seq: int
    layer_start: int
    layer_end: int
    page_start: int
    pages: int
    bytes: int
    announced_at: float
    started_at: float
    arrived_at: float
    done_at: float


@dataclass(frozen=True, slots=True)
class HandoffTimeline:
    """One side's view of one handoff; `side` is source or reader."""

    attempt: Attempt
    side: str
    began_at: float
    opened_at: float
    committed_at: float
    recorded_at: float
    questioned_at: float
    ended_at: float
    outcome: str
    layers: int
    left_out: int
    computed: tuple[ComputedRange, ...]
    reads: tuple[ReadRange, ...]


@dataclass(frozen=True, slots=True)
class Timelines:
    """What one agent remembers of a request. Agents of equal `clock` read the same one; `now`: by it, at the answer."""

    now: float
    clock: str
    handoffs: tuple[HandoffTimeline, ...]


class Agent:
    """One KV agent."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = kv_pb2_grpc.KvAgentStub(channel)

    async def timelines(self, request_id: str) -> Timelines:
        reply = await self._stub.Timelines(kv_pb2.TimelinesRequest(request_id=request_id), timeout=_ASK_S)
        return Timelines(reply.now, reply.clock, tuple(map(_timeline, reply.handoffs)))


@asynccontextmanager
async def agent(address: str) -> AsyncIterator[Agent]:
    """A connection to the agent at `host:port`. Its calls raise BatonError; ConfigError when it keeps no timelines."""
    async with _calling(address) as channel:
        yield Agent(channel)


async def agent_of(worker_address: str) -> tuple[str, str]:
    """Address and transport of a worker's agent."""
    async with _calling(worker_address) as channel:
        stub = worker_pb2_grpc.WorkerStub(channel)
        description = await stub.Describe(worker_pb2.DescribeWorkerRequest(), timeout=_ASK_S)
    return description.agent.address, description.agent.transport


def _timeline(message: kv_pb2.HandoffTimeline) -> HandoffTimeline:
    m = message
    return HandoffTimeline(
        attempt=attempt_from_pb(m.attempt), side=m.side, began_at=m.began_at, opened_at=m.opened_at,
        committed_at=m.committed_at, recorded_at=m.recorded_at, questioned_at=m.questioned_at, ended_at=m.ended_at,
        outcome=m.outcome, layers=m.layers, left_out=m.left_out,
        computed=tuple(
            ComputedRange(c.layer_start, c.layer_end, c.page_start, c.pages, c.computed_at) for c in m.computed
        ),
        reads=tuple(
            ReadRange(
                r.seq, r.layer_start, r.layer_end, r.page_start, r.pages, r.bytes, r.announced_at, r.started_at,
                r.arrived_at, r.done_at,
            )
            for r in m.reads
        ),
    )  # fmt: skip


@asynccontextmanager
async def _calling(address: str) -> AsyncIterator[grpc.aio.Channel]:
    channel = open_channel(address)
    try:
        yield channel
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            raise ConfigError(f"the process at {address} is of an earlier version, which keeps no timelines") from None
        raise from_rpc_error(error) from error
    finally:
        await channel.close(None)
