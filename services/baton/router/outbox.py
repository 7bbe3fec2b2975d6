"""Events of requests on their way to one caller: collected while the stream is busy, sent together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from baton.core.errors import BatonError
from baton.router.convert import FINISH_TO_PB
from baton.router.ports import Finish, Row
from baton.router.request import Request, Usage
from baton.rpc.convert import error_to_pb
from baton.rpc.v1 import router_pb2

MAX_EVENTS = 100_000  # a caller that does not read loses its stream, not the router its memory


class Outbox:
    """What one stream has still to send, and the requests that came by it. One event loop.

    `on_overflow` is called when the caller has left MAX_EVENTS unread; what comes then is dropped.
    """

    def __init__(self, on_overflow: Callable[[], object]) -> None:
        self.live: dict[str, Request] = {}
        self._on_overflow = on_overflow
        self._events: list[router_pb2.GenerateEvent] = []
        self._changed = asyncio.Event()
        self._closing = False
        self._is_full = False

    def put(self, event: router_pb2.GenerateEvent) -> None:
        if len(self._events) >= MAX_EVENTS:
            if not self._is_full:
                self._is_full = True
                self._on_overflow()
            return
        self._events.append(event)
        self._changed.set()

    def close_when_done(self) -> None:
        """The caller will submit nothing more: the stream ends with its last request."""
        self._closing = True
        self._changed.set()

    async def take(self) -> list[router_pb2.GenerateEvent]:
        """All events since the last call, in order; waits for one. Empty: the stream is over."""
        while not self._events:
            if self._closing and not self.live:
                return []
            await self._changed.wait()
            self._changed.clear()
        events, self._events = self._events, []
        return events


class OutboxSink:
    """Sink of one request: its events as messages into an outbox."""

    def __init__(self, outbox: Outbox, request_id: str) -> None:
        self._outbox = outbox
        self._request_id = request_id
        self._has_begun = False

    def on_tokens(self, attempt: int, row: Row) -> None:
        tokens = router_pb2.Tokens(
            token_ids=row.token_ids,
            logprobs=row.logprobs,
            prompt_logprobs=row.prompt_logprobs,
            vector=row.vector,
            finish=FINISH_TO_PB[row.finish],
        )
        if not self._has_begun and (request := self._outbox.live.get(self._request_id)) is not None:
            tokens.cached_tokens = request.usage.cached_tokens
            tokens.prefill_worker = request.usage.prefill_worker
            tokens.decode_worker = request.usage.decode_worker
        self._has_begun = True
        self._outbox.put(router_pb2.GenerateEvent(request_id=self._request_id, attempt=attempt, tokens=tokens))

    def on_finished(self, attempt: int, finish: Finish, stop_token_id: int, usage: Usage) -> None:
        finished = router_pb2.Finished(
            reason=FINISH_TO_PB[finish],
            stop_token_id=stop_token_id,
            usage=router_pb2.Usage(
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.cached_tokens,
                completion_tokens=usage.completion_tokens,
                queued_s=usage.queued_s,
                prefill_worker=usage.prefill_worker,
                decode_worker=usage.decode_worker,
                handoff_bytes=usage.handoff.bytes,
                handoff_s=usage.handoff.total_s,
                handoff_exposed_s=usage.handoff.exposed_s,
                attempts=usage.attempts,
            ),
        )
        self._last(router_pb2.GenerateEvent(request_id=self._request_id, attempt=attempt, finished=finished))

    def on_error(self, attempt: int, error: BatonError) -> None:
        message = error_to_pb(error)
        self._last(router_pb2.GenerateEvent(request_id=self._request_id, attempt=attempt, error=message))

    def _last(self, event: router_pb2.GenerateEvent) -> None:
        self._outbox.live.pop(self._request_id, None)
        self._outbox.put(event)
