"""What the prefix tests share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from baton.prefix.publisher import BlockPublisher
from baton.runtime.lifecycle import cancel_and_wait


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], timeout_s: float = 10.0) -> None:
    """Wait for a condition of a real server; fails when it does not come true."""
    async with asyncio.timeout(timeout_s):
        while True:
            value = condition()
            if await value if isinstance(value, Awaitable) else value:
                return
            await asyncio.sleep(0.005)


@asynccontextmanager
async def run_task(coroutine: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run beside the body; an error of the coroutine fails the test."""
    task = asyncio.create_task(coroutine)
    try:
        yield
    finally:
        if task.done():
            task.result()
        await cancel_and_wait(task)


def drained(publisher: BlockPublisher) -> bool:
    return not publisher._pending
