"""Router messages <-> the client's plain data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from baton.client.api import (
    FinishedEvent,
    FinishReason,
    Fleet,
    FleetWorker,
    GenerateRequest,
    Model,
    TokenLogprobs,
    TokensEvent,
    Usage,
    WorkerTotals,
)
from baton.core.sampling import SamplingParams
from baton.rpc.convert import pooling_to_pb, sampling_to_pb, tasks_from_pb
from baton.rpc.v1 import common_pb2, router_pb2

FINISH: dict[int, FinishReason] = {
    common_pb2.FINISH_REASON_STOP: "stop",
    common_pb2.FINISH_REASON_LENGTH: "length",
    common_pb2.FINISH_REASON_CANCELLED: "cancelled",
}


def generate_message(
    request: GenerateRequest,
    sampling: SamplingParams,
    *,
    emitted: Sequence[int],
    remaining_s: float | None,
    first_attempt: int,
) -> router_pb2.GenerateRequest:
    return router_pb2.GenerateRequest(
        request_id=request.request_id,
        model=request.model,
        prompt_token_ids=request.prompt_token_ids,
        emitted_token_ids=emitted,
        sampling=sampling_to_pb(sampling),
        deadline_ms=0 if remaining_s is None else max(1, int(remaining_s * 1000)),
        tenant=request.tenant,
        cache_salt=request.cache_salt,
        priority=request.priority,
        lora=request.lora,
        first_attempt=first_attempt,
        traceparent=request.traceparent,
        pooling=pooling_to_pb(request.pooling) if request.pooling is not None else None,
    )


def tokens_event(message: router_pb2.Tokens) -> TokensEvent:
    return TokensEvent(
        token_ids=list(message.token_ids),
        logprobs=_logprobs(message.logprobs) if message.logprobs else None,
        prompt_logprobs=_logprobs(message.prompt_logprobs) if message.prompt_logprobs else None,
        cached_tokens=message.cached_tokens if message.HasField("cached_tokens") else None,
        prefill_worker=message.prefill_worker,
        decode_worker=message.decode_worker,
        vector=list(message.vector) if message.vector else None,
    )


def finished_event(message: router_pb2.Finished) -> FinishedEvent:
    usage = message.usage
    return FinishedEvent(
        reason=FINISH[message.reason],
        stop_token_id=message.stop_token_id if message.reason == common_pb2.FINISH_REASON_STOP else None,
        usage=Usage(
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            queued_s=usage.queued_s,
            prefill_worker=usage.prefill_worker,
            decode_worker=usage.decode_worker,
            handoff_bytes=usage.handoff_bytes,
            handoff_s=usage.handoff_s,
            handoff_exposed_s=usage.handoff_exposed_s,
            attempts=usage.attempts,
        ),
    )


def models(message: router_pb2.ListModelsResponse) -> list[Model]:
    return [
        Model(m.name, m.max_context_tokens, m.revision, m.ready, tasks_from_pb(m.tasks) if m.tasks else frozenset())
        for m in message.models
    ]


def fleet(message: router_pb2.FleetResponse) -> Fleet:
    return Fleet(
        workers=tuple(_worker(worker) for worker in message.workers),
        redis_connected=message.redis_connected,
        index_blocks=message.index_blocks,
        queued=message.queued,
        in_flight=message.in_flight,
        version=message.version,
        unreachable=tuple(message.unreachable),
    )


def _worker(message: router_pb2.FleetWorker) -> FleetWorker:
    """Field by field under the same names; totals likewise."""
    own = {name: getattr(message, name) for name in FleetWorker.__slots__ if name != "totals"}
    totals = {name: getattr(message.totals, name) for name in WorkerTotals.__slots__}
    return FleetWorker(**own, totals=WorkerTotals(**totals))


def _logprobs(messages: Iterable[common_pb2.TokenLogprobs]) -> list[TokenLogprobs]:
    return [
        TokenLogprobs(entry.token_id, entry.logprob, tuple((top.token_id, top.logprob) for top in entry.top))
        for entry in messages
    ]
