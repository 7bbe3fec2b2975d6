"""Runs the inputs of one HTTP request over the routers, many at a time, and hands out their vectors in order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from starlette.requests import Request

from baton.client import GenerateRequest, Pooled, PoolingParams
from baton.gateway import metrics
from baton.gateway.http.context import context_of
from baton.gateway.http.disconnect import unless_disconnected
from baton.gateway.pooling.texts import PoolingInput
from baton.gateway.service import Service
from baton.gateway.tenants import current_caller
from baton.runtime.lifecycle import cancel_and_wait

_AT_ONCE = 64  # inputs of one HTTP request under way: enough to fill the batches of a few workers


@dataclass(frozen=True, slots=True)
class Vectors:
    """Answers in the order of the inputs, and what they cost."""

    values: list[list[float]]
    prompt_tokens: int
    cached_tokens: int

    @property
    def usage(self) -> dict[str, int]:
        return {"prompt_tokens": self.prompt_tokens, "total_tokens": self.prompt_tokens}


async def pool(service: Service, request: Request, inputs: Sequence[PoolingInput], params: PoolingParams) -> Vectors:
    """One vector for each input. When one fails, or the client goes away, the others are cancelled.

    Raises BatonError.
    """
    context = context_of(request.scope)
    tokens = sum(len(one.token_ids) for one in inputs)
    if context.ticket is not None:
        await context.ticket.reserve(tokens)
    answers = await unless_disconnected(request.receive, _run(service, context.unique_id, inputs, params))
    cached_tokens = sum(answer.usage.cached_tokens for answer in answers)
    metrics.PROMPT_TOKENS.inc(tokens)
    metrics.CACHED_TOKENS.inc(cached_tokens)
    context.facts |= {"inputs": len(inputs), "prompt_tokens": tokens, "cached_tokens": cached_tokens}
    return Vectors([answer.vector for answer in answers], tokens, cached_tokens)


async def _run(
    service: Service, request_id: str, inputs: Sequence[PoolingInput], params: PoolingParams
) -> list[Pooled]:
    caller, places = current_caller(), asyncio.Semaphore(_AT_ONCE)

    async def run(index: int, one: PoolingInput) -> Pooled:
        asked = GenerateRequest(
            model=service.catalog.name,
            prompt_token_ids=one.token_ids,
            request_id=f"{request_id}-{index}" if index else request_id,
            deadline_s=service.settings.request_timeout_s,
            tenant=caller.tenant,
            cache_salt=caller.cache_salt,
            pooling=replace(params, second_text_at=one.second_text_at),
        )
        async with places:
            return await service.client.pool(asked)

    tasks = [asyncio.create_task(run(index, one)) for index, one in enumerate(inputs)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await cancel_and_wait(*tasks)
