"""The fleet as operators see it: every worker's description and last report as one message."""

from __future__ import annotations

from baton.router.fleet import Fleet, WorkerState
from baton.router.ports import AgentInfo
from baton.rpc.v1 import router_pb2 as pb

_NO_AGENT = AgentInfo("", 0, "")


def worker_messages(fleet: Fleet) -> list[pb.FleetWorker]:
    """Connected workers, by name."""
    return [_message(fleet, state) for state in sorted(fleet.workers, key=lambda state: state.info.worker_id)]


def _message(fleet: Fleet, state: WorkerState) -> pb.FleetWorker:
    info, load, standing = state.info, state.load, state.standing
    agent = info.agent or _NO_AGENT
    return pb.FleetWorker(
        worker_id=info.worker_id,
        role=info.role,
        address=info.address,
        epoch=info.epoch,
        connected=True,
        has_agent=info.agent is not None,
        pages=info.pages,
        free_pages=load.free_pages,
        evictable_pages=load.evictable_pages,
        running=load.running,
        waiting=load.waiting,
        model=info.model,
        transport=agent.transport,
        version=info.version,
        agent_version=agent.version,
        silent_s=fleet.silent_s(state),
        penalty_s=fleet.penalty_s(state),
        max_running=info.max_running,
        lent_pages=standing.lent_pages,
        waiting_extend_tokens=load.waiting_extend_tokens,
        extend_tokens_per_s=load.extend_tokens_per_s,
        decode_step_s=load.decode_step_s,
        handoff_bytes_per_s=load.handoff_bytes_per_s,
        page_bytes=info.layout.pool_bytes(1),
        tier_blocks=standing.tier_blocks,
        tier_capacity_blocks=agent.tier_blocks,
        totals=standing.totals,
    )
