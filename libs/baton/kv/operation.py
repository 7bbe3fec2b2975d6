"""One read that a thread carries out for the event loop: what to move, who waits for its end, who wants it no more."""

from __future__ import annotations

import asyncio
from typing import Any

from baton.kv.transport import PageIds, PeerKey, TransportError


class Read:
    """Layers x pages of a peer, to be copied into own pages."""

    def __init__(
        self, key: PeerKey, layer_start: int, layer_end: int, local_pages: PageIds, remote_pages: PageIds
    ) -> None:
        self.key = key
        self.layers = range(layer_start, layer_end)
        self.local_pages = local_pages
        self.remote_pages = remote_pages
        self.unwanted = False  # written by the event loop: no more bytes need be asked for
        self.bytes_moved = 0
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[int] = self._loop.create_future()

    def finish(self, error: TransportError | None) -> None:
        """On the thread: no byte of this operation moves any more."""
        settle(self._loop, self.done, self.bytes_moved, error)

    async def result(self) -> int:
        """Bytes moved. When this returns or raises, also CancelledError, no byte moves any more."""
        cancelled: asyncio.CancelledError | None = None
        while not self.done.done():
            try:
                await asyncio.wait([self.done])
            except asyncio.CancelledError as error:
                self.unwanted, cancelled = True, error
        if cancelled is not None:
            self.done.exception()  # taken notice of
            raise cancelled
        return self.done.result()


def settle(loop: asyncio.AbstractEventLoop, done: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    """Settle a future of the event loop from another thread."""

    def on_loop() -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)
            done.exception()  # taken notice of, also when nobody waits any more

    if not loop.is_closed():
        loop.call_soon_threadsafe(on_loop)
