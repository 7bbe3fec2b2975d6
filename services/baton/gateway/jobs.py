"""Work that goes on after the HTTP request that asked for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import structlog

from baton.runtime.lifecycle import cancel_and_wait

log = structlog.get_logger(__name__)


class Jobs:
    """Tasks by name. All of them end when the gateway stops; each then has the time of its own `finally`."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, work: Coroutine[object, object, None]) -> None:
        """Run `work`. `name` must not be in use. An error that `work` raises is logged as a defect."""
        assert name not in self._tasks, f"job {name} runs already"
        task = asyncio.create_task(work, name=name)
        self._tasks[name] = task
        task.add_done_callback(self._ended)

    async def cancel(self, name: str) -> bool:
        """Cancel it and wait for its end. False: no such job runs here."""
        task = self._tasks.get(name)
        if task is None:
            return False
        await cancel_and_wait(task)
        return True

    async def stop(self) -> None:
        """Cancel all and wait for their ends."""
        await cancel_and_wait(*self._tasks.values())

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task.get_name()]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("job failed by a defect", job=task.get_name(), exc_info=error)
