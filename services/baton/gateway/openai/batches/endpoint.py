"""`/v1/batches`: create, list, retrieve, cancel."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Literal

import orjson
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from baton.core.errors import InvalidRequest
from baton.gateway.http.body import json_object, read_body
from baton.gateway.http.fields import Body, parse
from baton.gateway.openai.batches.batch import OVER, Batch
from baton.gateway.openai.batches.runner import handlers_of
from baton.gateway.openai.batches.store import BatchStore, new_batch_id
from baton.gateway.openai.errors import NotFound
from baton.gateway.openai.files.endpoint import BATCH
from baton.gateway.openai.files.store import FileStore
from baton.gateway.openai.metadata import Metadata
from baton.gateway.openai.pages import page_of
from baton.gateway.service import Service
from baton.gateway.tenants import current_caller

_WINDOW_S = 24 * 3600


class OutputExpiry(Body):
    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class BatchRequest(Body):
    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: Metadata | None = None
    output_expires_after: OutputExpiry | None = None


class BatchesEndpoint:
    """Batches of whoever asks."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._paths = tuple(handlers_of(service))

    @property
    def _batches(self) -> BatchStore:
        return BatchStore.of_gateway(self._service.settings)

    async def create(self, request: Request) -> Response:
        batches, files = self._batches, FileStore.of_gateway(self._service.settings)
        body = await read_body(request, self._service.settings.max_body_bytes)
        asked = parse(BatchRequest, json_object(body))
        if asked.endpoint not in self._paths:
            raise InvalidRequest(
                f"Invalid value for 'endpoint': {asked.endpoint[:100]!r}; there are {', '.join(self._paths)}.",
                param="endpoint",
            )
        batch = self._new(asked)
        try:
            file = await asyncio.to_thread(files.get, asked.input_file_id, batch.tenant)
        except NotFound as error:
            raise InvalidRequest(error.message, param="input_file_id") from None
        if file.purpose != BATCH:
            raise InvalidRequest(f"The file's purpose is '{file.purpose}', not '{BATCH}'.", param="input_file_id")
        await asyncio.to_thread(batches.create, batch, files.path(file.id))
        return _json(batch.body())

    async def list(self, request: Request) -> Response:
        found = await asyncio.to_thread(self._batches.of, current_caller().tenant)
        return _json(page_of([batch.body() for batch in found], request.query_params))

    async def retrieve(self, request: Request) -> Response:
        return _json((await self._get(request)).body())

    async def cancel(self, request: Request) -> Response:
        """The batch is `cancelling` until what has been answered is in its files."""
        batch = await self._get(request)
        if batch.status in OVER:
            raise InvalidRequest(f"Cannot cancel a batch with status '{batch.status}'.")
        await asyncio.to_thread(self._batches.cancel, batch.id)
        return _json((await self._get(request)).body())

    async def _get(self, request: Request) -> Batch:
        return await asyncio.to_thread(self._batches.get, request.path_params["batch"], current_caller().tenant)

    def _new(self, asked: BatchRequest) -> Batch:
        caller, now = current_caller(), int(time.time())
        expiry = asked.output_expires_after
        return Batch(
            id=new_batch_id(),
            tenant=caller.tenant,
            key_id=caller.key.id if caller.key is not None else "",
            cache_salt=caller.cache_salt,
            endpoint=asked.endpoint,
            input_file_id=asked.input_file_id,
            completion_window=asked.completion_window,
            created_at=now,
            expires_at=now + _WINDOW_S,
            metadata=asked.metadata,
            output_ttl_s=float(expiry.seconds) if expiry is not None else self._service.settings.files_ttl_s,
        )


def _json(body: object) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
