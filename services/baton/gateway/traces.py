"""Spans of the gateway: an HTTP request, and each choice that it asks the routers for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import structlog
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from baton.gateway.http.context import context_of
from baton.runtime import tracing
from baton.runtime.tracing import Span

if TYPE_CHECKING:
    from baton.gateway.generation import Choice

_UNTRACED = ("/health", "/ready", "/metrics", "/v1/loads", "/ui", "/")


class Traced:
    """ASGI middleware, inside `WithContext`: the request's span, below the client's `traceparent` if it has sent one.

    Its trace id is on the request's log lines. Only there while tracing is on.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNTRACED or scope["path"].startswith("/ui/"):
            await self._app(scope, receive, send)
            return
        context = context_of(scope)
        span = tracing.enter(
            "gateway.request",
            Headers(scope=scope).get("traceparent", ""),
            {"http.request.method": scope["method"], "url.path": scope["path"], "baton.request_id": context.id},
        )
        if span:
            structlog.contextvars.bind_contextvars(trace_id=span.trace_id)
        try:
            with tracing.working_for(span):
                await self._app(scope, receive, send)
        finally:
            structlog.contextvars.unbind_contextvars("trace_id")
            route = scope.get("route")
            span.set({"http.response.status_code": context.status, "http.route": getattr(route, "path", "")})
            span.end(str(context.facts.get("error", context.status)) if context.status >= 500 else "")


@contextmanager
def understanding() -> Iterator[None]:
    """The span of parsing, templates and tokenizing."""
    span = tracing.start("gateway.understand", tracing.current().traceparent)
    try:
        yield
    finally:
        span.end()


@contextmanager
def generating(choice: Choice) -> Iterator[Span]:
    """The span of one choice, from its way to a router to its last token."""
    span = tracing.start("gateway.generate", tracing.current().traceparent)
    error = ""
    try:
        yield span
    except (GeneratorExit, asyncio.CancelledError):
        raise  # the client left, or has enough
    except Exception as failure:
        error = f"{type(failure).__name__}: {failure}"
        raise
    finally:
        if span:
            _tell(span, choice)
        span.end(error)


def _tell(span: Span, choice: Choice) -> None:
    if choice.first_token_at is not None:
        span.event("first token", at=time.time() - (time.monotonic() - choice.first_token_at))
    span.set(
        {
            "baton.request_id": choice.request_id,
            "baton.choice": choice.index,
            "baton.prompt_tokens": len(choice.prompt_token_ids),
            "baton.cached_tokens": choice.cached_tokens,
            "baton.completion_tokens": choice.completion_tokens,
            "baton.finish": choice.finish or "none",
        }
    )
