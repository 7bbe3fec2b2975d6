"""The outermost layer of the HTTP side: who a request is, how it ended, what it cost.

Every request gets an id (the client's `X-Request-Id` where it is usable), which is in the response's header and on
every log line, and is counted and timed. Errors that no other layer knew are logged here, once.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog
from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baton.gateway import metrics, request_log

if TYPE_CHECKING:
    from baton.gateway.limits.limiter import Ticket

log = structlog.get_logger(__name__)

_USABLE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_ID_HEADERS = (b"x-request-id", b"request-id")  # OpenAI's name and Anthropic's
_QUIET_PATHS = ("/health", "/ready", "/metrics", "/v1/loads")


@dataclass(slots=True)
class RequestContext:
    """What is known of a request. `id` names it for people; `unique_id` begins with it and is never used twice.

    `status` is counted and logged: of a stream that breaks off after its 200, the error's. `facts` are logged too.
    `ticket`: its place within its key's limits, where there are any.
    """

    id: str
    unique_id: str
    started: float  # time.monotonic()
    status: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    ticket: Ticket | None = None


_current: ContextVar[RequestContext | None] = ContextVar("request", default=None)


def note(**facts: Any) -> None:
    """What the log shall tell of the request that is being answered, wherever that is found out; else nothing."""
    context = _current.get()
    if context is not None:
        context.facts |= facts


def context_of(scope: Scope) -> RequestContext:
    context: RequestContext = scope["state"]["context"]
    return context


class WithContext:
    """Middleware around the whole application. `routes` name what metrics count by. `log_requests`: the setting."""

    def __init__(self, app: ASGIApp, routes: Sequence[Route], log_requests: str = request_log.ALL) -> None:
        self._app = app
        self._log_requests = log_requests
        self._paths: dict[Any, str] = {route.endpoint: route.path for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = _new_context(Headers(scope=scope).get("x-request-id", ""))
        scope.setdefault("state", {})["context"] = context
        structlog.contextvars.bind_contextvars(request_id=context.id)
        _current.set(context)
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                context.status = message["status"]
                ids = [(name, context.id.encode()) for name in _ID_HEADERS]
                message["headers"] = [*message.get("headers", []), *ids]
            await send(message)

        metrics.IN_FLIGHT.inc()
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            context.status = 500
            log.exception("request failed by a defect")
            if not started:
                raise
        finally:
            metrics.IN_FLIGHT.dec()
            self._report(scope, context)
            structlog.contextvars.unbind_contextvars("request_id")

    def _report(self, scope: Scope, context: RequestContext) -> None:
        endpoint = self._paths.get(scope.get("endpoint"), "other")
        seconds = time.monotonic() - context.started
        metrics.REQUESTS.labels(endpoint, str(context.status)).inc()
        metrics.REQUEST_SECONDS.labels(endpoint).observe(seconds)
        is_told = scope["path"] not in _QUIET_PATHS and request_log.gets_line(self._log_requests, context.status)
        tell = log.info if is_told else log.debug
        tell(
            "request",
            method=scope["method"],
            path=scope["path"],
            status=context.status,
            seconds=round(seconds, 3),
            **context.facts,
        )


def _new_context(given_id: str) -> RequestContext:
    unique = uuid.uuid4().hex
    if _USABLE_ID.fullmatch(given_id):
        return RequestContext(given_id, f"{given_id}-{unique[:12]}", time.monotonic())
    return RequestContext(f"req-{unique}", f"req-{unique}", time.monotonic())
