"""Reading an upload: multipart/form-data, bounded while it arrives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from baton.core.errors import Cancelled, InvalidRequest, RequestTooLarge

_MAX_FIELDS = 16
_SILENCE_S = 60.0
_ENVELOPE_BYTES = 1 << 16  # boundaries, headers and fields around the file


@asynccontextmanager
async def read_form(request: Request, limit_bytes: int) -> AsyncIterator[FormData]:
    """The form, with at most one file, which is on disk where it is large. At most `limit_bytes` are taken, whatever
    the client sends. Raises RequestTooLarge, InvalidRequest and Cancelled."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise InvalidRequest(
            "The body must be multipart/form-data, with the fields 'file' and 'purpose'.", param="file"
        )
    receive, taken = request.receive, 0

    async def counted() -> Message:
        nonlocal taken
        try:
            async with asyncio.timeout(_SILENCE_S):
                message = await receive()
        except TimeoutError as error:
            raise InvalidRequest(f"Nothing of the file arrived for {_SILENCE_S:g} s.", param="file") from error
        taken += len(message.get("body", b""))
        if taken > limit_bytes + _ENVELOPE_BYTES:
            raise RequestTooLarge(f"The file is larger than the {limit_bytes} bytes that this server has room for.")
        return message

    form = Request(request.scope, counted).form(max_files=1, max_fields=_MAX_FIELDS, max_part_size=_ENVELOPE_BYTES)
    try:
        async with form as fields:
            yield fields
    except HTTPException as error:
        raise InvalidRequest(f"The body is no valid form: {error.detail}", param="file") from error
    except ClientDisconnect as error:
        raise Cancelled("the client closed the connection before its upload was complete") from error
