"""Asking an endpoint without a connection: the same handlers, the same answers and errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from baton.core.errors import BatonError, InternalError
from baton.gateway.http.context import RequestContext
from baton.gateway.limits.limiter import Ticket
from baton.gateway.openai.errors import error_body

log = structlog.get_logger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class DirectAnswer:
    """`retry_after_s`: when asking again may help; None = it does not."""

    status: int
    body: Any
    retry_after_s: float | None = None


async def ask(handler: Handler, path: str, body: bytes, request_id: str, ticket: Ticket | None) -> DirectAnswer:
    """What `POST path` answers to `body`, an object that does not ask for a stream. Cancelling cancels the request."""
    context = RequestContext(request_id, request_id, time.monotonic(), ticket=ticket)
    scope = {
        "type": "http", "method": "POST", "path": path, "query_string": b"", "headers": [], "path_params": {},
        "state": {"context": context},
    }  # fmt: skip
    bodies: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if bodies:
            return bodies.pop()
        await asyncio.Event().wait()  # this client never hangs up
        raise AssertionError

    try:
        response = await handler(Request(scope, receive))
    except BatonError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # told as an error to clients, who are still there
            raise asyncio.CancelledError from error
        return failed(error)
    except Exception as error:
        log.exception("a request of a batch failed by a defect", request_id=request_id)
        return failed(InternalError(f"{type(error).__name__}: {error}"))
    return DirectAnswer(response.status_code, orjson.loads(bytes(response.body)))


def failed(error: BatonError) -> DirectAnswer:
    again = (error.retry_after_s or 1.0) if error.http_status in (429, 503) else None
    return DirectAnswer(error.http_status, error_body(error), again)
