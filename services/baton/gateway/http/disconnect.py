"""Work that ends when its client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from baton.core.errors import Cancelled, Unavailable
from baton.runtime.lifecycle import cancel_and_wait

T = TypeVar("T")


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end; cancel it as soon as the client has closed the connection.

    Called when the body has been read, from the request's own task, which only the server's shutdown cancels: that
    becomes Unavailable, so that the client is told. Raises Cancelled when the client left. `work` has ended either way.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Cancelled("the client closed the connection")
    except asyncio.CancelledError:
        raise Unavailable("the gateway is shutting down", retry_after_s=1.0) from None
    finally:
        await cancel_and_wait(task, watcher)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
