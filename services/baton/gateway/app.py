"""Assembly of the HTTP application: which path is answered by what."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from baton.core.errors import BatonError, InternalError, InvalidRequest
from baton.gateway.http.context import WithContext, context_of
from baton.gateway.openai.chat import ChatEndpoint
from baton.gateway.openai.completions import CompletionEndpoint
from baton.gateway.openai.errors import error_response
from baton.gateway.openai.models import ModelsEndpoint
from baton.gateway.service import Service
from baton.gateway.status import StatusPages


def create_app(service: Service) -> ASGIApp:
    """The ASGI application of one service."""
    models, status = ModelsEndpoint(service), StatusPages(service)
    routes = [
        Route("/v1/chat/completions", ChatEndpoint(service).create, methods=["POST"]),
        Route("/v1/completions", CompletionEndpoint(service).create, methods=["POST"]),
        Route("/v1/models", models.list),
        Route("/v1/models/{model:path}", models.retrieve),
        Route("/health", status.health),
        Route("/ready", status.ready),
        Route("/metrics", status.metrics),
        Route("/", status.index),
    ]
    handlers = {BatonError: _baton_error, HTTPException: _http_error, Exception: _defect}
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return WithContext(app, routes)


async def _baton_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, BatonError)
    context_of(request.scope).facts["error"] = error.message
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """What the router found: an unknown path or a wrong method."""
    assert isinstance(error, HTTPException)
    said = _NoRoute(error.status_code, f"{request.method} {request.url.path}")
    response = error_response(said)
    response.headers.update(error.headers or {})
    return response


async def _defect(request: Request, error: Exception) -> Response:
    return error_response(InternalError(f"{type(error).__name__}: {error}"))


class _NoRoute(InvalidRequest):
    code = "unknown_url"

    def __init__(self, status: int, asked: str) -> None:
        what = "method not allowed" if status == 405 else "unknown request URL"
        super().__init__(f"{asked[:500]}: {what}.")
        self.http_status = status
