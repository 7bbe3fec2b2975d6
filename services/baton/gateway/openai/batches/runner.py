"""The batches of this gateway's folder, run one beside the other, whichever gateway they were given to."""

from __future__ import annotations

import asyncio

import structlog

from baton.gateway import metrics
from baton.gateway.access import Access
from baton.gateway.openai.batches.direct import Handler
from baton.gateway.openai.batches.lanes import Lanes
from baton.gateway.openai.batches.run import BatchRun
from baton.gateway.openai.batches.store import BatchStore
from baton.gateway.openai.chat import ChatEndpoint
from baton.gateway.openai.completions import CompletionEndpoint
from baton.gateway.openai.embeddings import EmbeddingsEndpoint
from baton.gateway.openai.files.store import FileStore
from baton.gateway.openai.responses.endpoint import ResponsesEndpoint
from baton.gateway.service import Service
from baton.runtime.lifecycle import cancel_and_wait

log = structlog.get_logger(__name__)

_SCAN_S = 1.0
_SWEEP_S = 600.0


def handlers_of(service: Service) -> dict[str, Handler]:
    """The endpoints that batches may ask, by path."""
    return {
        "/v1/chat/completions": ChatEndpoint(service).create,
        "/v1/completions": CompletionEndpoint(service).create,
        "/v1/embeddings": EmbeddingsEndpoint(service).create,
        "/v1/responses": ResponsesEndpoint(service).create,
    }


class BatchRunner:
    """Looks for batches that nobody runs, and runs them."""

    def __init__(self, service: Service, access: Access | None = None) -> None:
        settings = service.settings
        self._files, self._batches = FileStore.of_gateway(settings), BatchStore.of_gateway(settings)
        self._lanes = Lanes(handlers_of(service), settings.batch_concurrency, access)
        self._settings = settings
        self._running: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until cancelled; what is not over then goes on when a gateway looks into the folder again."""
        swept_at = -_SWEEP_S
        now = asyncio.get_running_loop().time
        try:
            while True:
                try:
                    await self._start_new()
                    if now() - swept_at >= _SWEEP_S:
                        swept_at = now()
                        await asyncio.to_thread(self._sweep)
                except OSError as error:
                    log.error("the folder of batches cannot be read", error=str(error))
                await asyncio.sleep(_SCAN_S)
        finally:
            await cancel_and_wait(*self._running.values())

    async def _start_new(self) -> None:
        for id in await asyncio.to_thread(self._batches.unfinished):
            if id not in self._running:
                self._running[id] = asyncio.create_task(self._run(id))

    async def _run(self, id: str) -> None:
        try:
            with self._batches.lock(id) as mine:
                if mine:
                    await self._run_locked(id)
        finally:
            del self._running[id]

    async def _run_locked(self, id: str) -> None:
        try:
            with metrics.BATCHES.track_inprogress():
                batch = await asyncio.to_thread(self._batches.load, id)
                await BatchRun(batch, self._batches, self._files, self._lanes, self._settings.max_body_bytes).run()
        except Exception:
            log.exception("a batch failed by a defect; it will be tried again", batch=id)
            await asyncio.sleep(_SWEEP_S)

    def _sweep(self) -> None:
        self._files.sweep()
        self._batches.sweep(self._settings.files_ttl_s)
