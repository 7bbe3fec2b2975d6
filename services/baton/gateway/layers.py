"""What stands around the application, from the outside in: request ids and logs, traces, audit log, CORS, API keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI, Request, Response
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp

from baton.core.errors import BatonError
from baton.gateway.access import Access
from baton.gateway.auth.guard import Guard
from baton.gateway.http.audit import Audited, AuditLog
from baton.gateway.http.context import WithContext
from baton.gateway.settings import GatewaySettings
from baton.gateway.traces import Traced
from baton.runtime import tracing

_RATES = [f"x-ratelimit-{name}-{what}" for name in ("limit", "remaining", "reset") for what in ("requests", "tokens")]
_READABLE_HEADERS = ("x-request-id", "request-id", "retry-after", *_RATES)  # by scripts of web pages


def surrounded(
    app: FastAPI, settings: GatewaySettings, access: Access | None, refuse: Callable[[Request, BatonError], Response]
) -> ASGIApp:
    """`app` within what the settings ask for. `refuse` words an error for the API. Raises ConfigError."""
    inner: ASGIApp = app
    if access is not None:
        inner = Guard(inner, access.ring, access.limiter, refuse)
    if settings.cors_origins:
        inner = CORSMiddleware(
            inner,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=_READABLE_HEADERS,
        )
    if settings.audit_log:
        inner = Audited(inner, AuditLog(Path(settings.audit_log)), bodies=settings.audit_bodies)
    if tracing.is_on():
        inner = Traced(inner)
    routes = [route for route in app.routes if isinstance(route, Route)]
    return WithContext(inner, routes, settings.log_requests)
