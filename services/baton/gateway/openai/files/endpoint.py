"""`/v1/files`: upload, list, retrieve, delete, download."""

from __future__ import annotations

import asyncio

import orjson
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from baton.core.errors import InvalidRequest
from baton.gateway.openai.files.store import FileStore
from baton.gateway.openai.files.upload import read_form
from baton.gateway.openai.pages import page_of
from baton.gateway.service import Service
from baton.gateway.tenants import current_caller

BATCH, BATCH_OUTPUT = "batch", "batch_output"
_MOST_LISTED = 10_000
_LEAST_TTL_S, _MOST_TTL_S = 3600, 2_592_000  # OpenAI's limits


class FilesEndpoint:
    """Files of whoever asks."""

    def __init__(self, service: Service) -> None:
        self._service = service

    @property
    def _files(self) -> FileStore:
        return FileStore.of_gateway(self._service.settings)

    async def create(self, request: Request) -> Response:
        files = self._files
        async with read_form(request, await asyncio.to_thread(files.room_bytes)) as form:
            file, ttl_s = form.get("file"), self._ttl_s(form)
            if not isinstance(file, UploadFile):
                raise InvalidRequest("Missing required parameter: 'file'.", param="file")
            purpose = form.get("purpose")
            if purpose != BATCH:
                raise InvalidRequest(
                    f"Invalid value for 'purpose': {str(purpose)[:50]!r}; files are kept for batches here: 'batch'.",
                    param="purpose",
                )
            stored = await asyncio.to_thread(
                files.add,
                file.file,
                tenant=current_caller().tenant,
                filename=(file.filename or "upload.jsonl")[:255],
                purpose=BATCH,
                ttl_s=ttl_s,
            )
        return _json(stored.body())

    async def list(self, request: Request) -> Response:
        found = await asyncio.to_thread(self._files.of, current_caller().tenant)
        purpose = request.query_params.get("purpose")
        listed = [file.body() for file in found if purpose in (None, file.purpose)]
        return _json(page_of(listed, request.query_params, most=_MOST_LISTED, limit=_MOST_LISTED))

    async def retrieve(self, request: Request) -> Response:
        file = await asyncio.to_thread(self._files.get, request.path_params["file"], current_caller().tenant)
        return _json(file.body())

    async def content(self, request: Request) -> Response:
        file = await asyncio.to_thread(self._files.get, request.path_params["file"], current_caller().tenant)
        return FileResponse(self._files.path(file.id), media_type="application/octet-stream")

    async def delete(self, request: Request) -> Response:
        id = request.path_params["file"]
        await asyncio.to_thread(self._files.delete, id, current_caller().tenant)
        return _json({"id": id, "object": "file", "deleted": True})

    def _ttl_s(self, form: FormData) -> float:
        given = form.get("expires_after[seconds]")
        if given is None:
            return self._service.settings.files_ttl_s
        if form.get("expires_after[anchor]", "created_at") != "created_at":
            raise InvalidRequest("Invalid value for 'expires_after.anchor': 'created_at' is expected.",
                                 param="expires_after.anchor")  # fmt: skip
        if not (isinstance(given, str) and given.isascii() and given.isdigit() and len(given) < 10
                and _LEAST_TTL_S <= int(given) <= _MOST_TTL_S):  # fmt: skip
            raise InvalidRequest(
                f"Invalid value for 'expires_after.seconds': it must be from {_LEAST_TTL_S} to {_MOST_TTL_S}.",
                param="expires_after.seconds",
            )
        return float(given)


def _json(body: object) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")
