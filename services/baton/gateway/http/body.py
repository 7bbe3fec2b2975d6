"""Reading a request's body: bounded while it arrives, JSON, never a surprise."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request

from baton.core.errors import Cancelled, InvalidRequest, RequestTooLarge


async def read_json_object(request: Request, limit_bytes: int) -> dict[str, Any]:
    """The body as a JSON object. At most `limit_bytes` are held, whatever the client sends.

    Raises RequestTooLarge, InvalidRequest (not JSON, not UTF-8, nested too deeply, not an object) and Cancelled.
    """
    try:
        content = orjson.loads(await _read(request, limit_bytes))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return content


async def _read(request: Request, limit_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise _too_large(limit_bytes)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit_bytes:
                raise _too_large(limit_bytes)
    except ClientDisconnect as error:
        raise Cancelled("the client closed the connection before its request was complete") from error
    return bytes(body)


def _too_large(limit_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"The body is larger than this server's limit of {limit_bytes} bytes.")
