"""Errors as OpenAI's API answers them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import orjson
from starlette.responses import Response

from baton.core.errors import BatonError, InternalError, InvalidRequest, QuotaExhausted
from baton.gateway.http.retry import retry_headers


class NotFound(InvalidRequest):
    """There is no such response, file or batch, or it is another tenant's."""

    code = "not_found"
    http_status = 404


_TYPES = {429: "rate_limit_error", 504: "timeout_error"}


def error_body(error: BatonError) -> dict[str, object]:
    """The JSON body. Details of our own defects stay in the log."""
    status = error.http_status
    message = "The server had an internal error." if isinstance(error, InternalError) else error.message
    kind = _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
    if isinstance(error, QuotaExhausted):
        kind = error.code
    code = None if type(error) is InvalidRequest else error.code
    return {"error": {"message": message, "type": kind, "param": error.param, "code": code}}


def error_response(error: BatonError) -> Response:
    """The HTTP response; with Retry-After where trying again makes sense."""
    return Response(orjson.dumps(error_body(error)), error.http_status, retry_headers(error), "application/json")


def error_event(error: BatonError) -> bytes:
    """The last event of a stream that had already begun."""
    return b"data: " + orjson.dumps(error_body(error)) + b"\n\n"
