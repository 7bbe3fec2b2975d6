"""Worker messages <-> the router's own nouns (ports.py)."""

from __future__ import annotations

from collections.abc import Iterator

from baton.router.ports import AgentInfo, Assignment, Fetch, Finish, Load, Offer, Row, Standing, WorkerInfo
from baton.rpc.convert import attempt_to_pb, layout_from_pb, pooling_to_pb, sampling_to_pb, tasks_from_pb
from baton.rpc.v1 import common_pb2, worker_pb2

_FINISH = {
    common_pb2.FINISH_REASON_UNSPECIFIED: None,
    common_pb2.FINISH_REASON_STOP: Finish.STOP,
    common_pb2.FINISH_REASON_LENGTH: Finish.LENGTH,
    common_pb2.FINISH_REASON_CANCELLED: Finish.CANCELLED,
}
FINISH_TO_PB = {finish: number for number, finish in _FINISH.items()}


def worker_info(message: worker_pb2.WorkerDescription) -> WorkerInfo:
    agent = message.agent
    return WorkerInfo(
        worker_id=message.worker_id,
        epoch=message.epoch,
        role=message.role,
        model=message.model,
        layout=layout_from_pb(message.layout),
        pages=message.pages,
        max_context_tokens=message.max_context_tokens,
        max_running=message.max_running,
        agent=_agent_info(agent) if message.HasField("agent") else None,
        address=message.address,
        tasks=tasks_from_pb(message.tasks),
        version=message.version,
    )


def load(message: worker_pb2.Load) -> Load:
    return Load(
        running=message.running,
        waiting=message.waiting,
        free_pages=message.free_pages,
        evictable_pages=message.evictable_pages,
        waiting_extend_tokens=message.waiting_extend_tokens,
        extend_tokens_per_s=message.extend_tokens_per_s,
        decode_step_s=message.decode_step_s,
        handoff_bytes_per_s=message.handoff_bytes_per_s,
        pull_bytes_per_s=message.pull_bytes_per_s,
        pull_wait_s=message.pull_wait_s,
        host_restore_bytes_per_s=message.host_restore_bytes_per_s,
        host_restore_wait_s=message.host_restore_wait_s,
        disk_restore_bytes_per_s=message.disk_restore_bytes_per_s,
        disk_restore_wait_s=message.disk_restore_wait_s,
    )


def standing(message: worker_pb2.Load) -> Standing:
    return Standing(message.lent_pages, message.tier_blocks, message.totals)


def rows(frame: worker_pb2.StepFrame) -> Iterator[tuple[int, Row]]:
    """(ref, row) of a packed frame. Raises ValueError when its arrays do not fit together."""
    token_ids = list(frame.token_ids)
    if len(token_ids) != sum(frame.counts):
        raise ValueError(f"frame {frame.step} counts {sum(frame.counts)} tokens and holds {len(token_ids)}")
    logprobs = {entry.ref: entry for entry in frame.logprobs}
    vectors = {entry.ref: entry.values for entry in frame.vectors}
    start = 0
    for ref, count, finish in zip(frame.refs, frame.counts, frame.finish, strict=True):
        entry = logprobs.get(ref)
        yield (
            ref,
            Row(
                token_ids[start : start + count],
                _FINISH[finish],
                entry.tokens if entry else (),
                entry.prompt if entry else (),
                vectors.get(ref, ()),
            ),
        )
        start += count


def assign_message(ref: int, assignment: Assignment) -> worker_pb2.WorkerRequest:
    message = worker_pb2.Assign(
        ref=ref,
        attempt=attempt_to_pb(assignment.attempt),
        token_ids=assignment.token_ids,
        prompt_tokens=assignment.prompt_tokens,
        sampling=sampling_to_pb(assignment.sampling),
        priority=assignment.priority,
        deadline_ms=max(1, int(assignment.deadline_s * 1000)),
        cache_salt=assignment.cache_salt,
        lora=assignment.lora,
        traceparent=assignment.traceparent,
    )
    if assignment.pooling is not None:
        message.pooling.CopyFrom(pooling_to_pb(assignment.pooling))
    match assignment.stage:
        case Offer(decode_worker_id):
            message.offer.decode_worker_id = decode_worker_id
        case Fetch(worker_id, worker_epoch, agent):
            message.fetch.worker_id = worker_id
            message.fetch.worker_epoch = worker_epoch
            message.fetch.agent.CopyFrom(_agent_message(agent))
        case _:
            message.run_all.SetInParent()
    if pull := assignment.pull:
        message.pull.worker_id = pull.worker_id
        message.pull.worker_epoch = pull.worker_epoch
        message.pull.agent.CopyFrom(_agent_message(pull.agent))
        message.pull.tokens = pull.tokens
    return worker_pb2.WorkerRequest(assign=message)


def _agent_info(agent: worker_pb2.AgentDescription) -> AgentInfo:
    return AgentInfo(agent.address, agent.epoch, agent.transport, agent.tier_blocks, agent.version)


def _agent_message(agent: AgentInfo) -> worker_pb2.AgentDescription:
    return worker_pb2.AgentDescription(address=agent.address, epoch=agent.epoch, transport=agent.transport)
