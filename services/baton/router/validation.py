"""Router messages -> submissions: what is wrong with a request is said here, before it costs anything."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace

from baton.core.attempt import new_request_id
from baton.core.errors import InvalidRequest, PromptTooLong
from baton.core.pooling import Task, check_task
from baton.core.sampling import SEED_MASK, SamplingParams
from baton.router.fleet import Fleet
from baton.router.request import Submission
from baton.router.settings import RouterSettings
from baton.rpc.convert import pooling_from_pb, sampling_from_pb
from baton.rpc.v1 import router_pb2

_MAX_ID_BYTES = 256


def submission(message: router_pb2.GenerateRequest, settings: RouterSettings, fleet: Fleet) -> Submission:
    """Raises InvalidRequest, which names the field, or PromptTooLong, which names the limit and the length."""
    if not message.model:
        raise InvalidRequest("model is missing", param="model")
    if not message.prompt_token_ids:
        raise InvalidRequest("the prompt is empty: at least one token is needed", param="prompt_token_ids")
    for name in ("request_id", "tenant", "cache_salt", "lora"):
        if len(getattr(message, name).encode()) > _MAX_ID_BYTES:
            raise InvalidRequest(f"{name} is longer than {_MAX_ID_BYTES} bytes", param=name)
    pooling = pooling_from_pb(message.pooling) if message.HasField("pooling") else None
    task = Task.GENERATE if pooling is None else pooling.task
    if tasks := fleet.tasks(message.model):
        check_task(task, tasks, f"model {message.model!r}")
    _check_length(message, fleet, task)
    return Submission(
        request_id=message.request_id or new_request_id(),
        model=message.model,
        prompt=list(message.prompt_token_ids),
        sampling=_seeded(sampling_from_pb(message.sampling)) if pooling is None else SamplingParams(max_tokens=1),
        deadline_s=message.deadline_ms / 1000 or settings.deadline_s,
        emitted=list(message.emitted_token_ids),
        tenant=message.tenant,
        cache_salt=message.cache_salt,
        priority=message.priority,
        lora=message.lora,
        first_attempt=message.first_attempt,
        traceparent=message.traceparent,
        pooling=pooling,
    )


def _check_length(message: router_pb2.GenerateRequest, fleet: Fleet, task: Task) -> None:
    limits: Sequence[int] = [state.info.token_limit for state in fleet.of_model(message.model)]
    tokens = len(message.prompt_token_ids) + len(message.emitted_token_ids)
    if task is not Task.GENERATE:
        if limits and tokens > max(limits):
            raise PromptTooLong(
                f"the input has {tokens} tokens; model {message.model!r} takes at most {max(limits)}",
                param="prompt_token_ids",
            )
    elif limits and tokens >= max(limits):
        raise PromptTooLong(
            f"the prompt has {tokens} tokens; model {message.model!r} takes at most {max(limits)} tokens, "
            "prompt and output together, and one must be left for the output",
            param="prompt_token_ids",
        )


def _seeded(sampling: SamplingParams) -> SamplingParams:
    """Another attempt must draw the same tokens, so a request without a seed gets one."""
    return sampling if sampling.seed else replace(sampling, seed=secrets.randbits(64) & SEED_MASK or 1)
