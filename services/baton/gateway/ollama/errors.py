"""Errors as Ollama's API answers them: `{"error": text}`."""

from __future__ import annotations

import orjson
from starlette.responses import Response

from baton.core.errors import BatonError, InternalError, InvalidRequest
from baton.gateway.http.retry import retry_headers


class NotSupported(InvalidRequest):
    """A whole endpoint of Ollama's that this server does not have."""

    code = "not_supported"
    http_status = 501


def error_body(error: BatonError) -> dict[str, str]:
    """The JSON body. Details of our own defects stay in the log."""
    return {"error": "The server had an internal error." if isinstance(error, InternalError) else error.message}


def error_response(error: BatonError) -> Response:
    return Response(orjson.dumps(error_body(error)), error.http_status, retry_headers(error), "application/json")


def error_line(error: BatonError) -> bytes:
    """The last line of a stream that had already begun."""
    return orjson.dumps(error_body(error)) + b"\n"
