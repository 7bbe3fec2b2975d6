"""The layer of the HTTP side that lets requests through: with a key that is known, within that key's limits.

Refusals come before the body is read. What is inside runs for the key's tenant (`baton.gateway.tenants`).
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baton.core.errors import BatonError, Unauthenticated
from baton.gateway.auth.key import ApiKey
from baton.gateway.auth.ring import KeyRing
from baton.gateway.dialect import dialect_of
from baton.gateway.http.context import RequestContext, context_of
from baton.gateway.limits.headers import limit_headers
from baton.gateway.limits.limiter import Limiter
from baton.gateway.tenants import Caller, acting_for

_OPEN = ("/health", "/ready", "/ui")


class Guard:
    """ASGI middleware, inside `WithContext`. `refuse` words an error for the API."""

    def __init__(
        self, app: ASGIApp, ring: KeyRing, limiter: Limiter, refuse: Callable[[Request, BatonError], Response]
    ) -> None:
        self._app = app
        self._ring = ring
        self._limiter = limiter
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        context = context_of(scope)
        try:
            key = self._ring.find(_presented(Headers(scope=scope)))
        except BatonError as error:
            await self._answer(error, scope, receive, send)
            return
        context.facts |= {"tenant": key.tenant, "key": key.id}
        with acting_for(Caller.of(key)):
            if scope["method"] == "POST" and key.is_limited:
                await self._within_limits(key, context, scope, receive, send)
            else:
                await self._app(scope, receive, send)

    async def _within_limits(
        self, key: ApiKey, context: RequestContext, scope: Scope, receive: Receive, send: Send
    ) -> None:
        dialect = dialect_of(scope["path"], Headers(scope=scope))
        context.ticket = ticket = self._limiter.ticket(key, context.unique_id)

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = limit_headers(dialect, key, ticket.standing)
                pairs = [(name.encode(), value.encode()) for name, value in told.items()]
                message["headers"] = [*message.get("headers", []), *pairs]
            await send(message)

        try:
            await ticket.enter()
        except BatonError as error:
            await self._answer(error, scope, receive, send_with_limits)
            return
        try:
            await self._app(scope, receive, send_with_limits)
        finally:
            ticket.leave()

    async def _answer(self, error: BatonError, scope: Scope, receive: Receive, send: Send) -> None:
        context_of(scope).facts["error"] = error.message
        response = self._refuse(Request(scope), error)
        if isinstance(error, Unauthenticated):
            response.headers["www-authenticate"] = "Bearer"
        await response(scope, receive, send)


def _is_open(path: str) -> bool:
    """Whether it needs no key: what load balancers ask, and the files of the page, which are the same for everybody."""
    return path in _OPEN or path.startswith("/ui/")


def _presented(headers: Headers) -> str:
    """The key's text: `Authorization: Bearer KEY`, as OpenAI's and Ollama's clients send it, or Anthropic's
    `x-api-key: KEY`. Raises Unauthenticated when there is neither."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    if given := headers.get("x-api-key"):
        return given.strip()
    raise Unauthenticated("You didn't provide an API key: send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'.")
