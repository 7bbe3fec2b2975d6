"""Async Python client of the router's gRPC API: typed results and errors, streaming, cancellation, reconnection.

async with BatonClient(["127.0.0.1:7000"]) as client:
    request = GenerateRequest(model="tiny", prompt_token_ids=[1, 2, 3], sampling=SamplingParams(max_tokens=8))
    async for event in client.generate(request):
        print(event)
"""

from baton.client.api import (
    Completion,
    Event,
    FinishedEvent,
    Fleet,
    FleetWorker,
    GenerateRequest,
    Model,
    Pooled,
    TokenLogprobs,
    TokensEvent,
    Usage,
    WorkerTotals,
)
from baton.client.client import BatonClient
from baton.core.pooling import PoolingParams, Task
from baton.core.sampling import SamplingParams

__all__ = [
    "BatonClient",
    "Completion",
    "Event",
    "FinishedEvent",
    "Fleet",
    "FleetWorker",
    "GenerateRequest",
    "Model",
    "Pooled",
    "PoolingParams",
    "SamplingParams",
    "Task",
    "TokenLogprobs",
    "TokensEvent",
    "Usage",
    "WorkerTotals",
]
