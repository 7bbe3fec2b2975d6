"""Errors as Anthropic's API answers them: `{"type": "error", "error": {"type", "message"}, "request_id"}`."""

from __future__ import annotations

import orjson
from starlette.requests import Request
from starlette.responses import Response

from baton.core.errors import BatonError, InternalError
from baton.gateway.http.context import context_of
from baton.gateway.http.retry import retry_headers

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_body(error: BatonError, request_id: str) -> dict[str, object]:
    """The JSON body. Details of our own defects stay in the log."""
    message = "The server had an internal error." if isinstance(error, InternalError) else error.message
    status = error.http_status
    kind = _TYPES.get(status) or ("api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


def error_response(request: Request, error: BatonError) -> Response:
    body = orjson.dumps(error_body(error, context_of(request.scope).id))
    return Response(body, error.http_status, retry_headers(error), "application/json")
