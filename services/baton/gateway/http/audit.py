"""The audit log: one JSON line for every request of a client. Who asked for what, when, and how it ended; what was said
is not in it, unless the operator wants that.

    {"time": "2026-11-21T12:00:00.123Z", "request_id": "req-..", "client": "10.0.0.7", "tenant": "acme",
     "key": "3f9a0c17e2", "method": "POST", "path": "/v1/chat/completions", "model": "llama", "status": 200,
     "seconds": 1.234, "prompt_tokens": 12, "cached_tokens": 0, "completion_tokens": 34}
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baton.core.errors import ConfigError
from baton.gateway.http.context import context_of

_UNTOLD = ("/health", "/ready")  # load balancers, every second
_MOST_BODY_BYTES = 1 << 20


class AuditLog:
    """Appends to a file, which may be moved away (log rotation): a new one is begun. Raises ConfigError."""

    def __init__(self, path: Path) -> None:
        try:
            self._handler = WatchedFileHandler(path, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write the audit log {path}: {error.strerror}") from error

    def write(self, entry: dict[str, object]) -> None:
        line = orjson.dumps(entry, default=str).decode()
        self._handler.handle(logging.LogRecord("audit", logging.INFO, "", 0, line, None, None))

    def close(self) -> None:
        self._handler.close()


class Audited:
    """ASGI middleware inside `WithContext`. `bodies`: what clients send is written too, up to a megabyte of each."""

    def __init__(self, app: ASGIApp, log: AuditLog, *, bodies: bool) -> None:
        self._app = app
        self._log = log
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNTOLD:
            await self._app(scope, receive, send)
            return
        body = bytearray()

        async def receive_and_keep() -> Message:
            message = await receive()
            body.extend(message.get("body", b"")[: _MOST_BODY_BYTES - len(body)])
            return message

        try:
            await self._app(scope, receive_and_keep if self._bodies else receive, send)
        finally:
            self._log.write(_entry(scope) | ({"body": body.decode(errors="replace")} if self._bodies else {}))


def _entry(scope: Scope) -> dict[str, object]:
    context = context_of(scope)
    facts = {name: context.facts.get(name) for name in ("tenant", "key", "model", "error")}
    tokens = {name: context.facts.get(name) for name in ("prompt_tokens", "cached_tokens", "completion_tokens")}
    told = {name: value for name, value in {**facts, **tokens}.items() if value is not None}
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "request_id": context.id,
        "client": scope["client"][0] if scope.get("client") else None,
        "method": scope["method"],
        "path": scope["path"],
        "status": context.status,
        "seconds": round(time.monotonic() - context.started, 3),
        **told,
    }
