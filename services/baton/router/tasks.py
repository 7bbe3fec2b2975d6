"""Background tasks whose end is never silent."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

log = structlog.get_logger(__name__)


def background(coroutine: Coroutine[Any, Any, None], what: str) -> asyncio.Task[None]:
    """Run beside the caller, who cancels it in the end. An error, which is a defect, is logged at once."""
    task = asyncio.create_task(coroutine, name=what)
    task.add_done_callback(_log_failure)
    return task


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("a part of the router has failed", part=task.get_name(), exc_info=error)
