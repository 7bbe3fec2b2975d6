"""Responses that come piece by piece: their errors are HTTP errors until the first piece, and pieces afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from baton.core.errors import BatonError, Cancelled, InternalError
from baton.gateway.http.context import RequestContext, context_of
from baton.gateway.http.disconnect import unless_disconnected
from baton.gateway.mailbox import Alarm

log = structlog.get_logger(__name__)

SSE = "text/event-stream; charset=utf-8"
SSE_COMMENT = b": keep-alive\n\n"
_GOODBYE_S = 1.0
_HEADERS = [
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # asks reverse proxies not to collect events
]


class StreamedBody(Response):
    """Sends `pieces`, each as soon as it is there. Nothing is sent before the first of them.

    The client leaving, or not reading for `slow_reader_timeout_s`, closes the generator. At most one send is under way:
    a client that does not read stops the generator. `render_error` makes the last piece of a stream that failed.
    """

    def __init__(
        self,
        pieces: AsyncGenerator[bytes],
        media_type: str,
        render_error: Callable[[BatonError], bytes],
        slow_reader_timeout_s: float,
    ) -> None:
        super().__init__(media_type=media_type)
        self._pieces = pieces
        self._head = [(b"content-type", media_type.encode()), *_HEADERS]
        self._render_error = render_error
        self._slow_reader_timeout_s = slow_reader_timeout_s
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_disconnected(receive, self._send_all(send))
        except Exception as error:
            if not self._started:
                raise
            await self._break_off(_typed(error), context_of(scope), send)

    async def _send_all(self, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None
        gave_up = False

        def give_up() -> None:
            nonlocal gave_up
            gave_up = True
            task.cancel()

        patience = Alarm(give_up)
        try:
            async with aclosing(self._pieces) as pieces:
                async for data in pieces:
                    if not self._started:
                        self._started = True
                        await send({"type": "http.response.start", "status": 200, "headers": self._head})
                    patience.set(self._slow_reader_timeout_s)
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                    patience.clear()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            if not gave_up or task.uncancel():
                raise  # somebody else wants its end
            seconds = self._slow_reader_timeout_s
            raise Cancelled(f"the client took nothing of its stream for {seconds:g} s") from None
        finally:
            patience.close()

    async def _break_off(self, error: BatonError, context: RequestContext, send: Send) -> None:
        context.status = error.http_status
        context.facts["error"] = error.message
        if isinstance(error, Cancelled):
            return  # nobody reads any more
        with suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                await send({"type": "http.response.body", "body": self._render_error(error), "more_body": False})


def _typed(error: Exception) -> BatonError:
    if isinstance(error, BatonError):
        return error
    log.error("stream failed by a defect", exc_info=error)
    return InternalError(f"{type(error).__name__}: {error}")
