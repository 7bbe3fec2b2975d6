"""Step outputs -> packed frames, one per router and step."""

from __future__ import annotations

from collections.abc import Iterable

from baton.core.tiers import Tier
from baton.engine.api import EngineLoad, Finish, RowOutput, TokenLogprob
from baton.rpc.v1 import common_pb2, worker_pb2
from baton.worker.pull_meter import PullMeter
from baton.worker.tiering import RestorePrices
from baton.worker.totals import Totals

FINISH = {
    None: common_pb2.FINISH_REASON_UNSPECIFIED,
    Finish.STOP: common_pb2.FINISH_REASON_STOP,
    Finish.LENGTH: common_pb2.FINISH_REASON_LENGTH,
}


def step_frame(step: int, rows: Iterable[tuple[int, RowOutput]], load: worker_pb2.Load) -> worker_pb2.StepFrame:
    """Pack (ref, row) pairs. Row i of the frame has counts[i] of token_ids."""
    frame = worker_pb2.StepFrame(step=step, load=load)
    for ref, row in rows:
        frame.refs.append(ref)
        frame.counts.append(len(row.token_ids))
        frame.token_ids.extend(row.token_ids)
        frame.finish.append(FINISH[row.finish])
        if row.logprobs is not None or row.prompt_logprobs is not None:
            frame.logprobs.append(
                worker_pb2.RowLogprobs(
                    ref=ref,
                    tokens=[_logprob(entry) for entry in row.logprobs or ()],
                    prompt=[_logprob(entry) for entry in row.prompt_logprobs or ()],
                )
            )
        if row.vector is not None:
            frame.vectors.append(worker_pb2.RowVector(ref=ref, values=row.vector))
    return frame


def load_message(
    load: EngineLoad, handoff_bytes_per_s: float, pulls: PullMeter, restores: RestorePrices, totals: Totals
) -> worker_pb2.Load:
    host, disk = restores.meters[Tier.HOST], restores.meters[Tier.DISK]
    return worker_pb2.Load(
        running=load.running,
        waiting=load.waiting,
        free_pages=load.free_pages,
        evictable_pages=load.evictable_pages,
        waiting_extend_tokens=load.waiting_extend_tokens,
        extend_tokens_per_s=load.extend_tokens_per_s,
        decode_step_s=load.decode_step_s,
        handoff_bytes_per_s=handoff_bytes_per_s,
        pull_bytes_per_s=pulls.bytes_per_s,
        pull_wait_s=pulls.wait_s,
        host_restore_bytes_per_s=host.bytes_per_s,
        host_restore_wait_s=host.wait_s,
        disk_restore_bytes_per_s=disk.bytes_per_s,
        disk_restore_wait_s=disk.wait_s,
        lent_pages=load.lent_pages,
        tier_blocks=load.tier_blocks,
        totals=totals.message,
    )


def _logprob(entry: TokenLogprob) -> common_pb2.TokenLogprobs:
    return common_pb2.TokenLogprobs(
        token_id=entry.token_id,
        logprob=entry.logprob,
        top=[common_pb2.TopLogprob(token_id=token, logprob=logprob) for token, logprob in entry.top],
    )
