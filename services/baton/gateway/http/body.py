"""Reading a request's body: bounded while it arrives, JSON, never a surprise."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request

from baton.core.errors import Cancelled, InvalidRequest, RequestTooLarge

_ARRIVAL_S = 60.0


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The body. At most `limit_bytes` are held, whatever the client sends.

    Raises RequestTooLarge, InvalidRequest when it does not arrive in time, and Cancelled.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise _too_large(limit_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(_ARRIVAL_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit_bytes:
                    raise _too_large(limit_bytes)
    except ClientDisconnect as error:
        raise Cancelled("the client closed the connection before its request was complete") from error
    except TimeoutError as error:
        raise InvalidRequest(f"The body did not arrive within {_ARRIVAL_S:g} s.") from error
    return bytes(body)


def json_object(body: bytes) -> dict[str, Any]:
    """The object that `body` holds. Raises InvalidRequest: not JSON, not UTF-8, nested too deeply, not an object."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return content


def _too_large(limit_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(f"The body is larger than this server's limit of {limit_bytes} bytes.")
